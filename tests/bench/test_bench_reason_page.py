"""`docs/rewards.md` says what the summary of the measured run says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from bench.reason import LEAST_GAIN, ReasonBench
from bench.reason_picture import draw

DOCS = Path(__file__).parents[2] / "docs"
PAGE = " ".join((DOCS / "rewards.md").read_text().split())
FOUND = json.loads((DOCS / "results" / "reason.json").read_text())
ROWS = {
    "base": "base",
    "sft": "cold start",
    "grpo": "**GRPO from it**",
    "more sft": "more SFT from it, 894 steps",
    "more sft, to the end": "more SFT from it, 1,294 steps",
}


def test_every_figure_of_the_table() -> None:
    assert FOUND["command"] in PAGE
    assert list(FOUND["arms"]) == list(ROWS)
    for name, arm in FOUND["arms"].items():
        greedy = f"{100 * arm['greedy']:.1f} % [{100 * arm['low']:.0f}, {100 * arm['high']:.0f}]"
        assert f"| {ROWS[name]} | {greedy} | {100 * arm['pass_at_1']:.1f} % | {100 * arm['pass_at_8']:.1f} % |" in PAGE


def test_the_bar() -> None:
    gain, beyond = FOUND["grpo_over_sft"], FOUND["grpo_over_more_sft"]
    for one in (gain, beyond):
        assert f"{100 * one['mean']:+.1f} points [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]".replace("-", "−") in PAGE
    assert FOUND["cleared"] == (gain["mean"] >= LEAST_GAIN and gain["low"] > 0 and beyond["mean"] > 0)
    assert FOUND["cleared"] == ("**It is cleared.**" in PAGE)
    assert 0.05 <= FOUND["arms"]["base"]["greedy"] <= 0.6, "the base model solves some, and not most"


def test_the_command_does_what_was_measured() -> None:
    config, defaults = FOUND["config"], ReasonBench()
    assert {name: config[name] for name in vars(defaults) if name != "out"} == {
        name: value for name, value in vars(defaults).items() if name != "out"
    }
    assert f"{config['steps']} steps of {config['prompts']} prompts × {config['group']} answers" in PAGE
    assert f"{config['traces']} solved instances, {config['epochs']:g} epochs" in PAGE
    assert len(FOUND["curve"]) == config["steps"]
    assert f"Judged on {config['unseen']} unseen instances" in PAGE
    assert config["sampled"] == config["unseen"]


def test_imitation_had_at_least_as_much_time() -> None:
    seconds = FOUND["training_seconds"]
    assert seconds["more sft, to the end"] >= seconds["grpo"]
    assert f"with {seconds['more sft, to the end'] / seconds['grpo']:.1f} times its seconds" in PAGE
    assert f"stopped at {FOUND['more_sft_stopped_at_epoch']:.0f} of {FOUND['more_sft_planned_epochs']} epochs" in PAGE


def test_what_the_curves_show() -> None:
    solved = [point["solved"] for point in FOUND["curve"]]
    entropy = [point["entropy"] for point in FOUND["curve"]]
    dead = [point["dead"] for point in FOUND["curve"]]
    first, last = np.mean(solved[:20]), np.mean(solved[-20:])
    assert f"its samples solved {100 * first:.0f} % in the first 20 steps and {100 * last:.0f} % in the last" in PAGE
    assert f"entropy fell from {np.mean(entropy[:20]):.2f} to {np.mean(entropy[-20:]):.2f} nats a token" in PAGE
    assert f"{100 * np.mean(dead):.0f} % of the groups that a step kept were dead" in PAGE
    imitated, rewarded = FOUND["watched"]["more sft"], FOUND["watched"]["grpo"]
    at_once = [seen["greedy"] for seen in imitated if seen["seconds"] <= rewarded[-1]["seconds"]][-1]
    words = f"it rose from {100 * imitated[0]['greedy']:.0f} to {100 * max(seen['greedy'] for seen in imitated):.0f} % and fell to"
    assert f"{words} {100 * at_once:.0f} % by the time at which GRPO ended with {100 * rewarded[-1]['greedy']:.0f} %" in PAGE


def test_the_picture_is_of_this_summary(tmp_path: Path) -> None:
    assert draw(FOUND, tmp_path / "a.svg").read_bytes() == (DOCS / "pictures" / "reason.svg").read_bytes()
