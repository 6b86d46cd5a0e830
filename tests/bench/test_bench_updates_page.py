"""The page's figures of updates and of whole steps are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text()


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    return found


def test_short_updates() -> None:
    short, group = result("sft-group-short"), result("sft-group")
    assert f"**{short['ratio_to_tuned']:.1f} times** as fast as TRL tuned, {short['share_of_limit'] * 100:.0f} % of the limit" in PAGE
    assert (short["settings"]["rounds"], short["settings"]["steps"]) == (1, 1), "the page says that it was one round of one step"
    assert short["sweep"]["best"].items() <= group["sweep"]["best"].items(), "taken over; a later field is at its default"
    assert (short["sweep"]["best"]["precision"], short["sweep"]["best"]["rows"]) == ("autocast", 2)


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


def test_pairs_were_compared_in_fp32() -> None:
    found = result("sft-pairs")
    assert found["in_fp32"]["max_loss_difference"] < 1e-3
    assert found["max_relative_loss_difference_to_fp32"] < 0.02
    assert f"The rate is {found['settings']['learning_rate']:.0e}.".replace("e-0", "e-") in PAGE
