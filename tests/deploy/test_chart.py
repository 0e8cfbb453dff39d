"""The Helm chart: what Helm makes of it, against the schemas of Kubernetes, the server's options and its routes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.files import CHART, ROOT, image_environment, read_yaml, require, serve_options
from tests.deploy.promql import adapter_rules
from tests.server.harness import real_service, serving

VERSIONS = ("1.27", "1.32", "1.37")
REDIS = {"kind": "url", "url": "redis://redis:6379/0"}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "redis": {"replicas": 3, "stateStore": REDIS},
    "secret": {
        "stateStore": {"kind": "url", "urlSecret": {"name": "store"}, "environmentSecret": "aws"},
        "autoscaling": {"enabled": True, "maxReplicas": 8},
    },
    "shared folder": {"replicas": 2, "stateStore": {"folder": {"accessMode": "ReadWriteMany", "storageClass": "nfs"}}},
    "existing claim": {"stateStore": {"folder": {"claim": "mine"}}, "podDisruptionBudget": {"maxUnavailable": "50%"}},
    "no store": {"stateStore": {"kind": "none"}, "podDisruptionBudget": {"enabled": False}},
    "gpu": {"gpus": 1, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "model": "/models/a"},
    "keys": {"apiKeysSecret": "ostinato-keys"},
    "all else": {
        "modelClaim": "weights",
        "options": ["--max-batch", "64", "--state-compression"],
        "annotations": {"team": "a"},
        "nodeSelector": {"zone": "b"},
        "imagePullSecrets": [{"name": "registry"}],
        "affinity": {"podAntiAffinity": {}},
        "service": {"type": "LoadBalancer", "port": 8080},
        "image": {"repository": "registry.example/ostinato", "tag": "1"},
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"replica": 2}, "replica"),
    "wrong type": ({"replicas": "two"}, "replicas"),
    "unknown store": ({"stateStore": {"kind": "disk"}}, "kind"),
    "unknown scheme": ({"stateStore": {"kind": "url", "url": "ftp://host"}}, "url"),
    "no address": ({"stateStore": {"kind": "url"}}, "stateStore.url or stateStore.urlSecret.name"),
    "two addresses": ({"stateStore": {**REDIS, "urlSecret": {"name": "store"}}}, "stateStore.urlSecret.name"),
    "several pods on one claim": ({"replicas": 2}, "several pods need one store"),
    "autoscaling on one claim": ({"autoscaling": {"enabled": True}}, "several pods need one store"),
    "bounds crossed": (
        {"stateStore": REDIS, "autoscaling": {"enabled": True, "minReplicas": 5}},
        "autoscaling.minReplicas is above",
    ),
}


def rendered(values: dict[str, Any]) -> dict[str, Any]:
    """The objects by kind; each kind occurs once. Raises helm_python.HelmError: Helm refuses the values."""
    require("helm_python", "helm-python-sdk")
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(chart.merge_values(values))
        files = chart.render(values, name="tiny", namespace="models")
    manifests = [text for name, text in files.items() if name.endswith(".yaml")]
    objects = [one for text in manifests for one in yaml.safe_load_all(text) if one]
    found = {one["kind"]: one for one in objects}
    assert len(found) == len(objects)
    return found


def pod(objects: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


def server(objects: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod(objects)["containers"]
    found: dict[str, Any] = container
    return found


def environment(objects: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in server(objects)["env"]}


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_helm_lints_it(values: dict[str, Any]) -> None:
    require("helm_python", "helm-python-sdk")
    import helm_python

    report = helm_python.lint(str(CHART), values, strict=True)
    assert not report["errors"]
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_kubernetes_takes_every_object(values: dict[str, Any], version: str) -> None:
    require("kubernetes_validate", "kubernetes-validate")
    import kubernetes_validate

    for one in rendered(values).values():
        assert kubernetes_validate.validate(one, version, strict=True).startswith(version)


def test_a_misspelt_field_is_noticed() -> None:
    require("kubernetes_validate", "kubernetes-validate")
    import kubernetes_validate

    deployment = rendered({})["Deployment"]
    server({"Deployment": deployment})["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    require("helm_python", "helm-python-sdk")
    import helm_python

    with pytest.raises(helm_python.HelmError, match=re.escape(message)):
        rendered(values)


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_server_takes_its_arguments(values: dict[str, Any]) -> None:
    objects = rendered(values)
    arguments = server(objects)["args"]
    for name in re.findall(r"\$\((\w+)\)", " ".join(arguments)):
        assert name in environment(objects)
    options = serve_options(arguments)
    assert options["model"] == values.get("model", "demo")
    assert options["drain_seconds"] + 5 < pod(objects)["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_whatever_is_written_has_a_volume(values: dict[str, Any]) -> None:
    objects = rendered(values)
    container = server(objects)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {Path(mount["mountPath"]): mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod(objects)["volumes"]}
    image = image_environment()
    caches = [Path(image[name]) for name in ("HOME", "HF_HOME", "OSTINATO_CACHE", "TRITON_CACHE_DIR")]
    for path in [*caches, Path(image["XDG_STATE_HOME"]) / "ostinato", Path("/tmp")]:
        assert any(path.is_relative_to(mount) for mount in mounts), path
    store = serve_options(container["args"])["state_store"][0]
    if store.startswith("/"):
        assert mounts[Path(store).parent] == "states"
        assert "persistentVolumeClaim" in next(v for v in pod(objects)["volumes"] if v["name"] == "states")


@pytest.mark.asyncio
async def test_probes_ask_routes_that_exist() -> None:
    container = server(rendered({}))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert environment(rendered({}))["PORT"]["value"] == str(ports["http"])
    async with serving(real_service()) as client:
        for probe, path in (("startupProbe", "/health"), ("livenessProbe", "/health"), ("readinessProbe", "/ready")):
            assert container[probe]["httpGet"] == {"path": path, "port": "http"}
            assert (await client.get(path)).status_code == 200
        annotations = rendered({})["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        assert (await client.get(annotations["prometheus.io/path"])).status_code == 200
        assert annotations["prometheus.io/port"] == str(ports["http"])


def test_the_autoscaler_reads_what_the_adapter_offers() -> None:
    (metric,) = rendered(VARIANTS["secret"])["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in {rule["name"]["as"] for rule in adapter_rules()}
    assert "replicas" not in rendered(VARIANTS["secret"])["Deployment"]["spec"]


def test_objects_belong_together() -> None:
    objects = rendered(VARIANTS["secret"])
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert objects["Service"]["spec"]["selector"].items() <= labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert (
        objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        == objects["Deployment"]["metadata"]["name"]
    )


def test_where_states_go() -> None:
    assert rendered({})["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    assert rendered({})["PersistentVolumeClaim"]["metadata"]["name"] == "tiny-ostinato-states"
    assert "PersistentVolumeClaim" not in rendered(VARIANTS["existing claim"])
    assert environment(rendered(VARIANTS["redis"]))["OSTINATO_STATE_STORE"]["value"] == REDIS["url"]
    secret = environment(rendered(VARIANTS["secret"]))["OSTINATO_STATE_STORE"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "store", "key": "url"}
    assert server(rendered(VARIANTS["secret"]))["envFrom"] == [{"secretRef": {"name": "aws"}}]


def test_api_keys_are_where_the_server_looks_for_them() -> None:
    """As a folder: Kubernetes turns its link when the Secret changes, and the server notices."""
    objects = rendered({"apiKeysSecret": "ostinato-keys"})
    (mount,) = [mount for mount in server(objects)["volumeMounts"] if mount["name"] == "keys"]
    (volume,) = [volume for volume in pod(objects)["volumes"] if volume["name"] == "keys"]
    assert volume["secret"] == {"secretName": "ostinato-keys"}
    assert "subPath" not in mount
    arguments = server(objects)["args"]
    assert arguments[arguments.index("--api-keys") + 1] == f"{mount['mountPath']}/keys.json"
    assert "--api-keys" not in server(rendered({}))["args"]


def test_gpus_choose_the_image_and_the_limit() -> None:
    version = read_yaml(CHART / "Chart.yaml")["appVersion"]
    assert server(rendered({}))["image"] == f"ostinato:{version}-cpu"
    container = server(rendered({"gpus": 2}))
    assert container["image"] == f"ostinato:{version}-cuda"
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": 2}


def test_the_chart_names_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert read_yaml(CHART / "Chart.yaml")["appVersion"] == project
