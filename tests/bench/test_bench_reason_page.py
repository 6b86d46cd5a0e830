"""`docs/rewards.md` says what the summary of the measured run says."""

from __future__ import annotations

import json
from pathlib import Path

from bench.reason import LEAST_GAIN, ReasonBench
from bench.reason_picture import draw

DOCS = Path(__file__).parents[2] / "docs"
PAGE = " ".join((DOCS / "rewards.md").read_text().split())
FOUND = json.loads((DOCS / "results" / "reason.json").read_text())
ROWS = {"base": "base", "sft": "cold start", "grpo": "**GRPO from it**", "more sft": "more SFT from it"}


def test_every_figure_of_the_table() -> None:
    assert FOUND["command"] in PAGE
    assert list(FOUND["arms"]) == list(ROWS)
    for name, arm in FOUND["arms"].items():
        greedy = f"{100 * arm['greedy']:.1f} % [{100 * arm['low']:.0f}, {100 * arm['high']:.0f}]"
        assert f"| {ROWS[name]} | {greedy} | {100 * arm['pass_at_1']:.1f} % | {100 * arm['pass_at_8']:.1f} % |" in PAGE


def test_the_differences() -> None:
    for name in ("grpo_over_sft", "grpo_over_more_sft"):
        one = FOUND[name]
        assert f"{100 * one['mean']:+.1f} points [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]".replace("-", "−") in PAGE
    gain, beyond = FOUND["grpo_over_sft"], FOUND["grpo_over_more_sft"]
    assert FOUND["cleared"] == (gain["mean"] >= LEAST_GAIN and gain["low"] > 0 and beyond["mean"] > 0)


def test_the_command_does_what_was_measured() -> None:
    config, defaults = FOUND["config"], ReasonBench()
    assert {name: config[name] for name in vars(defaults) if name != "out"} == {
        name: value for name, value in vars(defaults).items() if name != "out"
    }
    assert f"{config['steps']} steps of {config['prompts']} prompts × {config['group']} answers" in PAGE
    assert f"{config['traces']} worked solutions, {config['epochs']:g} epochs" in PAGE
    assert len(FOUND["curve"]) == config["steps"]


def test_the_picture_is_of_this_summary(tmp_path: Path) -> None:
    assert draw(FOUND, tmp_path / "a.svg").read_bytes() == (DOCS / "pictures" / "reason.svg").read_bytes()


def test_why_it_was_missed() -> None:
    dead = [point["dead"] for point in FOUND["curve"]]
    live = round(sum((1 - share) * FOUND["config"]["prompts"] for share in dead))
    assert ("**it was missed**" in PAGE) == (not FOUND["cleared"])
    assert f"{100 * sum(dead) / len(dead):.0f} % of the groups were dead, so {len(dead)} steps learned from {live} live groups" in PAGE
    before, after = FOUND["right_by_terms"]["sft"], FOUND["right_by_terms"]["grpo"]
    assert f"({before['2'][0]} → {after['2'][0]} of {after['2'][1]})" in PAGE
    assert f"({before['3'][0]} → {after['3'][0]} of {after['3'][1]})" in PAGE
    for name, counts in FOUND["right_by_terms"].items():
        assert sum(right for right, _ in counts.values()) == round(FOUND["arms"][name]["greedy"] * FOUND["config"]["unseen"])
    seconds = FOUND["training_seconds"]
    assert f"{FOUND['more_sft_epochs']} epochs, ran beside it and had {seconds['more sft'] / seconds['grpo']:.1f} times its seconds" in PAGE
