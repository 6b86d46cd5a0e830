"""The page's shares of the limit are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("workload", ["tools", "chat"])
def test_the_page_gives_the_share_that_was_measured(workload: str) -> None:
    share = json.loads((ROOT / "bench" / "results" / f"sft-{workload}-limit.json").read_text())["share_of_limit"]
    lines = [line for line in (ROOT / "docs" / "performance.md").read_text().splitlines() if line.startswith(f"| `{workload}` |")]
    assert any(f"**{share * 100:.1f} %**" in line for line in lines), lines
