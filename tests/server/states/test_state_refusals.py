"""What must not be gone on from: each is refused with an error of its own, and nothing else is disturbed."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load, save

from ostinato.engine.service import Service
from ostinato.engine.snapshot_file import SnapshotFormat
from ostinato.engine.snapshots import Snapshot
from tests.server.harness import GLA, GOLDENS, error_of, real_service, serving

pytestmark = pytest.mark.asyncio
PROMPT = [5, 6, 7, 8]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def service() -> Service:
    return real_service(GLA)


@pytest_asyncio.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service, state_store=(str(tmp_path),), max_state_bytes=500_000) as client:
        yield client


async def create(client: httpx.AsyncClient, **headers: str) -> str:
    response = await client.post("/v1/states", json={"prompt": PROMPT}, headers=headers)
    assert response.status_code == 201, response.text
    state: str = response.json()["id"]
    return state


async def content_of(client: httpx.AsyncClient, state: str) -> bytes:
    return (await client.get(f"/v1/states/{state}/content")).content


async def upload(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    state = f"st_{hashlib.sha256(content).hexdigest()}"
    return await client.put(f"/v1/states/{state}/content", content=content)


def header_of(content: bytes) -> dict[str, Any]:
    entries = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header: dict[str, Any] = json.loads(entries["__metadata__"]["ostinato"])
    return header


def write(tensors: Tensors, header: dict[str, Any]) -> bytes:
    return save({name: tensor.clone() for name, tensor in tensors.items()}, {"ostinato": json.dumps(header)})


def edited(change: Callable[[Tensors, dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """The same file after a change to its tensors or its header."""

    def edit(content: bytes) -> bytes:
        tensors, header = load(content), header_of(content)
        change(tensors, header)
        return write(tensors, header)

    return edit


def lies_about_shapes(content: bytes) -> bytes:
    """The safetensors header claims one more row than there are bytes for."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    entries["logits"]["shape"][0] += 1
    altered = json.dumps(entries).encode()
    return len(altered).to_bytes(8, "little") + altered + content[8 + length :]


NAN, INF = float("nan"), float("inf")
ZEROS = "0" * 64
BAD: dict[str, tuple[Callable[[bytes], bytes], str, int]] = {
    "empty": (lambda content: b"", "state_invalid", 400),
    "noise": (lambda content: bytes(range(256)) * 9, "state_invalid", 400),
    "truncated": (lambda content: content[:-1], "state_invalid", 400),
    "longer": (lambda content: content + b"\0", "state_invalid", 400),
    "huge-header": (lambda content: (2**62).to_bytes(8, "little") + content[8:], "state_invalid", 400),
    "shapes": (lies_about_shapes, "state_invalid", 400),
    "no-metadata": (lambda content: save(load(content)), "state_invalid", 400),
    "deep-metadata": (lambda c: save(load(c), {"ostinato": "[" * 10**5}), "state_invalid", 400),
    "unknown-field": (edited(lambda t, h: h.update(more=1)), "state_invalid", 400),
    "format": (edited(lambda t, h: h.update(format=2)), "state_invalid", 400),
    "parent-path": (edited(lambda t, h: h.update(parent="../../x")), "state_invalid", 400),
    "log-length": (edited(lambda t, h: h.update(tokens=9)), "state_invalid", 400),
    "log-altered": (edited(lambda t, h: t["tokens"].add_(1)), "state_invalid", 400),
    "log-outside": (edited(lambda t, h: t["tokens"].fill_(10**6)), "state_invalid", 400),
    "log-negative": (edited(lambda t, h: t["tokens"].fill_(-1)), "state_invalid", 400),
    "answer-length": (edited(lambda t, h: h["generation"].update(tokens=5)), "state_invalid", 400),
    "params": (edited(lambda t, h: h.update(params={"temperature": -1})), "state_invalid", 400),
    "tensor-missing": (edited(lambda t, h: t.pop("state.recurrent")), "state_invalid", 400),
    "tensor-more": (edited(lambda t, h: t.update(extra=torch.zeros(1))), "state_invalid", 400),
    "tensor-shape": (edited(lambda t, h: t.update({"state.recurrent": torch.zeros(2, 2)})), "state_invalid", 400),
    "tensor-dtype": (
        edited(lambda t, h: t.update({"state.recurrent": t["state.recurrent"].double()})),
        "state_invalid",
        400,
    ),
    "lossy-lie": (edited(lambda t, h: h.update(lossy="int8")), "state_invalid", 400),
    "nan": (edited(lambda t, h: t["state.recurrent"].view(-1)[7:8].fill_(NAN)), "state_not_finite", 400),
    "inf": (edited(lambda t, h: t["state.recurrent"].view(-1)[7:8].fill_(-INF)), "state_not_finite", 400),
    "nan-logits": (edited(lambda t, h: t["logits"][3:4].fill_(NAN)), "state_not_finite", 400),
    "weights": (edited(lambda t, h: h["fingerprint"].update(weights=ZEROS)), "state_of_other_model", 409),
    "config": (edited(lambda t, h: h["fingerprint"].update(config=ZEROS)), "state_of_other_model", 409),
    "tokenizer": (edited(lambda t, h: h["fingerprint"].update(tokenizer=ZEROS)), "state_of_other_tokenizer", 409),
    "no-tokenizer": (edited(lambda t, h: h["fingerprint"].update(tokenizer=None)), "state_of_other_tokenizer", 409),
    "dtype": (edited(lambda t, h: h["fingerprint"].update(dtype="float16")), "state_of_other_dtype", 409),
    "state-dtype": (edited(lambda t, h: h["fingerprint"].update(state_dtype="bfloat16")), "state_of_other_dtype", 409),
}


async def test_bad_files(client: httpx.AsyncClient, tmp_path: Path) -> None:
    """All of them at one server, which then still does what it did."""
    state = await create(client)
    content = await content_of(client, state)
    assert (await upload(client, edited(lambda t, h: None)(content))).status_code == 201, "an unchanged file is refused"
    (await client.delete(f"/v1/states/{state}")).raise_for_status()
    assert (await upload(client, content)).json()["id"] == state
    stored = sorted(path.name for path in (tmp_path / "content").iterdir())
    for name, (spoil, code, status) in BAD.items():
        response = await upload(client, spoil(content))
        assert response.status_code == status, f"{name}: {response.text}"
        assert error_of(response)["code"] == code, f"{name}: {response.text}"
    assert sorted(path.name for path in (tmp_path / "content").iterdir()) == stored, "something bad was stored"
    response = await client.post("/v1/completions", json={"state": state, "max_tokens": 1})
    assert response.status_code == 200


async def test_a_file_under_another_name(client: httpx.AsyncClient) -> None:
    content = await content_of(client, await create(client))
    response = await client.put(f"/v1/states/st_{ZEROS}/content", content=content)
    assert error_of(response)["code"] == "state_invalid"
    assert error_of(await client.get(f"/v1/states/st_{ZEROS}"))["code"] == "state_not_found"


async def test_oversized_uploads(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)

    for content in (bytes(500_001), pieces()):
        response = await client.put(f"/v1/states/st_{ZEROS}/content", content=content)
        assert response.status_code == 413
        assert "--max-state" in error_of(response)["message"]


@pytest.mark.parametrize(
    "path",
    ["..%2f..%2fetc%2fpasswd", "..", "st_", f"st_{'A' * 64}", f"st_{ZEROS}%00", f"st_{ZEROS}%2f..", "%F0%9F%92%A9"],
)
async def test_tricks_with_ids(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "DELETE"):
        response = await client.request(method, f"/v1/states/{path}")
        assert response.status_code in (400, 404, 405), response.text
        assert error_of(response)["code"] in ("state_id_invalid", "not_found", "method_not_allowed")


async def test_a_foreign_key_finds_nothing(client: httpx.AsyncClient) -> None:
    mine, theirs = {"authorization": "Bearer mine"}, {"authorization": "Bearer theirs"}
    state = await create(client, **mine)
    assert (await client.get(f"/v1/states/{state}", headers=mine)).status_code == 200
    for headers in (theirs, {}):
        requests = [
            client.get(f"/v1/states/{state}", headers=headers),
            client.get(f"/v1/states/{state}/content", headers=headers),
            client.get(f"/v1/states/{state}/tree", headers=headers),
            client.post(f"/v1/states/{state}", json={"pinned": True}, headers=headers),
            client.post(f"/v1/states/{state}/fork", json={"n": 1}, headers=headers),
            client.post(f"/v1/states/{state}/rewind", json={"back": 1}, headers=headers),
            client.delete(f"/v1/states/{state}", headers=headers),
            client.post("/v1/completions", json={"state": state, "prompt": "x"}, headers=headers),
        ]
        for request in requests:
            error = error_of(await request)
            assert error["code"] == "state_not_found"
        assert (await client.get("/v1/states", headers=headers)).json()["data"] == []
    assert (await client.get(f"/v1/states/{state}", headers=mine)).status_code == 200


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
async def test_damage_on_disk_is_found(tmp_path: Path, damage: str) -> None:
    async with serving(real_service(GLA), state_store=(str(tmp_path),), state_memory_bytes=0) as client:
        state = await create(client)
        whole = (await client.post("/v1/states", json={"prompt": [1, 2]})).json()["id"]
        file = tmp_path / "content" / f"{state.removeprefix('st_')}.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(content if damage == "flipped" else content[:-5])
        for _ in range(2):
            response = await client.post("/v1/completions", json={"state": state, "prompt": "x"})
            expected = (404, "state_not_found") if damage == "gone" else (410, "state_damaged")
            assert (response.status_code, error_of(response)["code"]) == expected, response.text
        response = await client.post("/v1/completions", json={"state": whole, "max_tokens": 1})
        assert response.status_code == 200


async def test_another_models_state_in_the_same_store(tmp_path: Path) -> None:
    async with serving(real_service(GLA, dtype="bfloat16"), state_store=(str(tmp_path),)) as client:
        state = await create(client)
    others = [(GOLDENS / "mamba_hf", "float32", "state_of_other_model"), (GLA, "float32", "state_of_other_dtype")]
    for folder, dtype, code in others:
        async with serving(real_service(folder, dtype=dtype), state_store=(str(tmp_path),)) as client:
            response = await client.post("/v1/completions", json={"state": state, "prompt": [1]})
            assert error_of(response)["code"] == code
            assert (await client.get(f"/v1/states/{state}")).status_code == 200


async def test_the_file_of_a_snapshot_is_the_same_bytes_again(client: httpx.AsyncClient, service: Service) -> None:
    content = await content_of(client, await create(client))
    form = service.snapshots
    assert isinstance(form, SnapshotFormat)
    snapshot = form.decode(content)
    assert isinstance(snapshot, Snapshot)
    assert form.encode(snapshot) == content
    assert form.encode(replace(snapshot, open_turn=True)) != content
