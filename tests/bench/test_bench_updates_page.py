"""The page's figures of updates and of whole steps are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text()


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("workload", ["group", "group-short"])
def test_the_page_gives_what_was_measured_of_an_update(workload: str) -> None:
    found = result(f"sft-{workload}")
    row = (
        f"| `{workload}` | **{found['ratio_to_tuned']:.1f}** | {found['share_of_limit']:.0%} | "
        f"{found['max_relative_loss_difference']:.2%} | {found['max_norm_difference']:.1%} |"
    ).replace("%", " %")
    assert row in PAGE


def test_the_peers_setting_is_the_one_that_the_page_names() -> None:
    short, group = result("sft-group-short"), result("sft-group")
    assert group["sweep"]["of"] == "group-short"
    assert group["sweep"]["best"] == short["sweep"]["best"]
    assert (short["sweep"]["best"]["precision"], short["sweep"]["best"]["rows"]) == ("autocast", 2)
    assert {found["settings"]["rounds"] for found in (short, group)} == {1}, "the page says that it was one round"


def test_where_the_time_goes_is_what_was_profiled() -> None:
    for line in result("sft-group")["profile"][:5]:
        assert f"| `{line['operation']}` | {line['share'] * 100:.1f} % |" in PAGE


def test_whole_steps_of_grpo() -> None:
    found = result("grpo")
    assert f"short **{found['ratio_short']:.1f} times**" in PAGE
    assert f"long **{found['ratio_long']:.1f} times**" in PAGE
    for name, one in found["lengths"].items():
        for who, phases in one["phases"].items():
            seconds = sum(phases.values()), phases["sample"], phases["forward and backward"]
            assert f"| {name} | {who} | {' | '.join(f'{value:.1f}' for value in seconds)} |" in PAGE
            assert all(phases[small] < 1 / 30 for small in ("reward", "log-probs", "step"))
        assert one["sampled_tokens"] == one["trained_tokens"]
    best = {name: one["sweep"]["best"] for name, one in found["lengths"].items()}
    assert (best["short"]["precision"], best["short"]["rows"]) == ("bf16", 4)
    assert (best["long"]["precision"], best["long"]["rows"]) == ("autocast", 1)


def test_preferences_alone() -> None:
    found = result("sft-pairs")
    assert f"**{100 * found['share_of_limit']:.0f} % of\nthe limit**" in PAGE
    assert (found["settings"]["rounds"], found["settings"]["steps"], found["settings"]["against"]) == (1, 2, "none")
    first, second, _ = found["losses"]["Sapwood"]
    assert abs(first - 0.6931) < 1e-4
    assert f"the second step is {second:.3f} here" in PAGE
