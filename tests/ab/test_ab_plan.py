"""A plan is read strictly, keeps its hash, and says what changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ab.trial import PLAN, plan_with
from sapwood.ab.plan import Arm, Metric, Override, Plan, Step, changes, load_plan
from sapwood.config import save_yaml
from sapwood.errors import ConfigError


def test_a_plan_is_what_was_written(tmp_path: Path) -> None:
    save_yaml(PLAN, tmp_path / "plan.yaml")
    found = load_plan(tmp_path / "plan.yaml")
    assert found == PLAN
    assert found.hash == PLAN.hash


def test_every_change_is_named_and_changes_the_hash() -> None:
    other = plan_with(effect=0.1, arms=(PLAN.arms[0], Arm(name="short", share=0.4, system="Be short.")))
    assert changes(PLAN, other) == ["arms.short.share", "effect"]
    assert other.hash != PLAN.hash


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nme: x", "Did you mean 'name'"),
        ("name: x\nmodel: m\narms:\n  - {name: a, sytem: x}", r"unknown option `arms.0..sytem`.*Did you mean"),
        ("name: x", "`model` is missing"),
        ("name: x\nmodel: m\nunit: cookie", "header:NAME"),
        ("name: x\nmodel: m\nwithout_unit: drop", "'control', 'refuse'"),
    ],
)
def test_what_a_plan_gets_wrong_is_said(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_plan(tmp_path / "plan.yaml")


ARMS = PLAN.arms


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"arms": ARMS[:1]}, "a control and at least one other"),
        ({"arms": (ARMS[1], ARMS[0])}, "each arm but the first"),
        ({"arms": (ARMS[0], Arm(name="a", share=0.6), Arm(name="b", share=0.4))}, "leave something for the control"),
        ({"arms": (ARMS[0], Arm(name="a", share=0.5, url="https://h/v1"))}, "give `model`"),
        ({"arms": (ARMS[0], Arm(name="a", share=0.5, url="h/v1", model="m"))}, "https://HOST"),
        ({"arms": (ARMS[0], Arm(name="a", share=0.5, key="KEY"))}, "no `url`"),
        ({"primary": "resolvd"}, "Did you mean 'resolved'"),
        ({"guardrails": ("thumbs",)}, "`guardrails` names 'thumbs'"),
        ({"guardrails": ("resolved",)}, "primary and a guardrail"),
        ({"metrics": (Metric(name="resolved", low=1), PLAN.metrics[1])}, "`low` is less than `high`"),
        ({"metrics": (Metric(name="resolved", high=float("inf")), PLAN.metrics[1])}, "gets the most that matters as `high`"),
        ({"metrics": (Metric(name="resolved", missing=2), PLAN.metrics[1])}, "outside of"),
        ({"metrics": (Metric(name="resolved", missing=0), PLAN.metrics[1])}, "`missing` needs a `window`"),
        ({"metrics": (Metric(name="resolved", margin=1), PLAN.metrics[1])}, "`margin` is 1"),
        ({"metrics": (*PLAN.metrics, Metric(name="failed"))}, "arms that fail and wait would win"),
        ({"metrics": (PLAN.metrics[0], Metric(name="seconds", high=9, clip=True))}, "arms that fail and wait would win"),
        ({"metrics": (PLAN.metrics[0], Metric(name="seconds", high=9, better="lower"))}, "and `clip: true`"),
        ({"metrics": (*PLAN.metrics, Metric(name="answer_tokens", high=9))}, "and `clip: true`"),
        *(
            ({"arms": (ARMS[0], Arm(name="b", share=0.5, **wrong))}, f"arm 'b' would answer nobody: {name}")
            for wrong, name in (
                ({"temperature": -1}, "temperature"),
                ({"top_p": 3}, "top_p"),
                ({"max_tokens": 0}, "max_new_tokens"),
                ({"min_p": 2}, "min_p"),
                ({"repetition_penalty": 0}, "repetition_penalty"),
            )
        ),
        ({"effect": 0.0}, "worth shipping"),
        ({"effect": 1.0}, "below 1"),
        ({"alpha": 0.0}, "`alpha`"),
        ({"units": 1}, "`units`"),
        ({"window": "a day"}, "24h"),
        ({"ramp": (Step(after="1h"), Step(after="1m"))}, "goes up in time"),
        ({"ramp": (Step(to=1.5),)}, "from 0 to 1"),
        ({"overrides": (Override(unit="me", arm="shrt"),)}, "Did you mean 'short'"),
    ],
)
def test_plans_that_cannot_be_meant(knobs: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_with(**knobs)


@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_a_ramp_moves_units_out_of_the_control_alone(place: float, tos: list[float]) -> None:
    """Even without records: whoever a growing ramp has given to a treatment, it leaves there."""
    arms = (ARMS[0], Arm(name="a", share=0.3), Arm(name="b", share=0.5))
    plan = plan_with(arms=arms, ramp=tuple(Step(after=f"{hours}h", to=to) for hours, to in enumerate(sorted(tos))))
    seen = [plan.arm_at(place, step) for step in range(-1, len(tos))]
    treated = [arm for arm in seen if arm]
    assert seen[0] == 0
    assert seen == [0] * (len(seen) - len(treated)) + treated
    assert len(set(treated)) <= 1


def test_steps_follow_the_clock() -> None:
    plan = plan_with(ramp=(Step(after="0s", to=0.1), Step(after="1h", to=1.0)))
    assert [plan.step_at(at) for at in (0, 3599, 3600, 1e9)] == [0, 0, 1, 1]
    assert plan.chances(0) == pytest.approx((0.95, 0.05))
    assert Plan.chances(PLAN, 0) == (0.5, 0.5)
