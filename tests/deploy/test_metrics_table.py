"""The table of metrics in the documentation is what a server exports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.harness import real_service, serving

TABLE = Path(__file__).parents[2] / "docs" / "http-api.md"


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels by name."""
    rows = re.findall(r"^\| `(ostinato_\w+)` \| (\w+) \| ([^|]*)\|", TABLE.read_text(), re.MULTILINE)
    assert len(rows) == len({name for name, _, _ in rows}), "a metric is there twice"
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


@pytest.mark.asyncio
async def test_the_table_is_complete_and_true(tmp_path: Path) -> None:
    async with serving(real_service(prefix_cache=1 << 20), state_store=(str(tmp_path),)) as client:
        await client.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 4, "store": True})
        text = (await client.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        name = {"counter": f"{family.name}_total", "info": f"{family.name}_info"}.get(family.type, family.name)
        kind = "gauge" if name.endswith("_info") else family.type
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        if not any(sample.name.endswith("_created") for sample in family.samples) or family.type != "gauge":
            found[name] = (kind, labels)
    assert found == documented()
