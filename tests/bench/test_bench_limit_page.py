"""The page's figures of a training step are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text()


def test_the_page_gives_the_share_of_tools_that_was_measured() -> None:
    share = json.loads((ROOT / "bench" / "results" / "sft-tools-limit.json").read_text())["share_of_limit"]
    lines = [line for line in PAGE.splitlines() if line.startswith("| `tools` |")]
    assert any(f"**{share * 100:.1f} %**" in line for line in lines), lines


@pytest.mark.parametrize(
    ("workload", "aims", "rounds"),
    [("chat", ("2.2", "5", "75"), 3), ("tools", ("7", "20", "70"), 2)],
)
def test_the_page_gives_what_was_measured_against_trl(workload: str, aims: tuple[str, str, str], rounds: int) -> None:
    found = json.loads((ROOT / "bench" / "results" / f"sft-{workload}.json").read_text())
    part = PAGE.partition(f"**Measured: `{workload}` against TRL**")[2].partition("**Measured: ")[0]
    for key, words in (
        ("ratio_to_tuned", f"**{found['ratio_to_tuned']:.2f}** | {aims[0]} |"),
        ("ratio_to_defaults", f"**{found['ratio_to_defaults']:.2f}** | {aims[1]} |"),
        ("share_of_limit", f"**{found['share_of_limit'] * 100:.1f} %** | {aims[2]} % |"),
        ("memory_ratio", f"**{found['memory_ratio']:.2f}** | 1 |"),
        ("memory_ratio_to_defaults", f"**{found['memory_ratio_to_defaults']:.2f}** | 0.5 |"),
        ("max_relative_loss_difference", f"by {found['max_relative_loss_difference'] * 100:.1f} % of the loss at most"),
    ):
        assert words in part, key
    assert f"the best of {len(found['sweep']['table'])} settings" in part
    assert found["settings"]["rounds"] == rounds
