"""The answer itself: each case in which fine-tuning should, should not, or cannot yet be decided on, from made-up evidence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sapwood.evaluate import ArmResult
from sapwood.evaluate.costs import ArmCost, BreakEven
from sapwood.evaluate.decision import Evidence, after_pilot, before_pilot
from sapwood.evaluate.format_check import FormShare
from sapwood.evaluate.free import MOST_COMMON, NEAREST
from sapwood.evaluate.hosted import HOSTED
from sapwood.evaluate.learning_curve import LearningCurve, learning_curve
from sapwood.recipes.arms import PLAIN
from sapwood.stats import mean_interval, paired_difference

ITEMS, SIZES = 120, (50, 100, 200, 400)


def arm(rate: float, items: int = ITEMS) -> ArmResult:
    right = round(rate * items)
    return ArmResult(right / items, mean_interval([1.0] * right + [0.0] * (items - right)), items, right, 0)


def scores(rate: float) -> np.ndarray:
    ease = (np.arange(ITEMS) * 67 % ITEMS) / ITEMS  # some items are easier than others, for every arm
    return (ease < rate).astype(float)


def curve(rates: tuple[float, ...], base: float) -> LearningCurve:
    return learning_curve([*SIZES] * 2, [scores(rate) for rate in rates] * 2, scores(base))


def evidence(
    rates: tuple[float, ...] | None = None, *, plain: float = 0.1, nearest: float = 0.15, constant: float = 0.1, **more: Any
) -> Evidence:
    best = max(plain, nearest, constant)
    arms = {MOST_COMMON: arm(constant), NEAREST: arm(nearest), PLAIN: arm(plain)} | more.pop("arms", {})
    given = {"items": ITEMS, "rows": 1000, "gain": 0.05, **more}
    return Evidence(arms=arms, curve=curve(rates, best) if rates else None, **given)


RISING, FLAT = (0.25, 0.4, 0.55, 0.65), (0.1, 0.11, 0.1, 0.1)


def test_a_rising_curve_says_yes_with_the_gain_and_its_interval() -> None:
    found = after_pilot(evidence(RISING))
    assert found.answer == "yes"
    assert "all 1,000 rows would bring this model to" in found.text
    assert "points [" in found.text
    assert [reason.holds for reason in found.reasons] == [True, None, None]


@pytest.mark.parametrize(
    ("better", "words"),
    [
        ({"plain": 0.98}, "the plain prompt is right in 98 %"),
        ({"nearest": 0.98}, "looking up the most similar row"),
        ({"constant": 0.98}, "one and the same answer to everything"),
    ],
)
def test_what_is_solved_already_needs_no_tuning_and_no_pilot(better: dict[str, float], words: str) -> None:
    found = before_pilot(evidence(**better))
    assert found is not None
    assert found.answer == "no"
    assert words in found.text


def test_a_wish_moves_what_counts_as_solved() -> None:
    assert before_pilot(evidence(plain=0.8)) is None
    found = before_pilot(evidence(plain=0.8, wish=0.7))
    assert found is not None
    assert found.answer == "no"
    assert "the 70 % you wish for" in found.text
    assert before_pilot(evidence(plain=0.8, wish=0.79)) is None, "reached on these items, but not for sure"


@pytest.mark.parametrize(("given", "words"), [({"items": 12}, "12 held-out items"), ({"rows": 30}, "only 30 rows to train on")])
def test_too_few_items_or_rows_is_not_yet(given: dict[str, int], words: str) -> None:
    found = before_pilot(evidence(**given))
    assert found is not None
    assert found.answer == "not yet"
    assert words in found.text


def test_a_flat_curve_says_no() -> None:
    found = after_pilot(evidence(FLAT, plain=0.6, rows=500))
    assert found.answer == "no"
    assert "less than the 5 points" in found.text
    assert "Use the plain prompt" in found.text


def test_a_lookup_that_tuning_does_not_beat_says_no() -> None:
    found = after_pilot(evidence((0.3, 0.4, 0.45, 0.5), nearest=0.9, rows=450))
    assert found.answer == "no"
    assert "Use the lookup" in found.text


def test_a_curve_that_needs_more_rows_says_how_many() -> None:
    found = after_pilot(evidence((0.1, 0.2, 0.3, 0.4), plain=0.52, rows=420))
    assert found.answer == "not yet"
    assert "takes about" in found.text
    assert "there are 420" in found.text


def test_a_wish_beyond_the_rows_there_are() -> None:
    found = after_pilot(evidence(RISING, rows=500, wish=0.97))
    assert found.answer == "not yet"
    assert "short of the 97 % you wish for" in found.text
    assert "97 % takes" in found.text or "No number of rows" in found.text
    probably = after_pilot(evidence(RISING, rows=2000, wish=0.85))
    assert probably.answer == "not yet"
    assert "probably short of the 85 %" in probably.text
    assert after_pilot(evidence(RISING, rows=2000, wish=0.7)).answer == "yes"


def test_what_the_pilot_cannot_tell_is_not_yet_with_the_next_step() -> None:
    few = (0.12, 0.15, 0.16, 0.2)
    found = after_pilot(evidence(few, plain=0.17, nearest=0.1, rows=600, items=60))
    assert found.answer == "not yet"
    assert "the pilot cannot tell" in found.text
    assert "Hold out more items" in found.text


def test_no_time_for_a_pilot_says_how_much_it_takes() -> None:
    found = after_pilot(evidence(missing_minutes=41.2))
    assert found.answer == "not yet"
    assert "--minutes 42" in found.text


def test_a_pilot_that_nothing_could_be_scored_in_says_so() -> None:
    found = after_pilot(evidence(largest=400))
    assert found.answer == "not yet"
    assert "no item could be scored" in found.text
    assert "--scorer" in found.text


def cost(name: str, rate: float, a_thousand: float) -> ArmCost:
    return ArmCost(name, rate, None, 100, 10, 1.0, a_thousand, a_thousand / 1000 / rate, None)


def test_cost_alone_is_a_reason_where_tuned_is_as_good_as_hosted() -> None:
    """Tuning gains nothing over few-shot prompts; but is as good as a model that costs forty times as much."""
    pays = BreakEven(once=50.0, saved=3.9, queries=12_820, months=1.3)
    given = {"tuned_cost": cost("tuned", 0.8, 0.1), "hosted_cost": cost(HOSTED, 0.7, 4.0), "pays": pays}
    plain = evidence((0.78, 0.8, 0.8, 0.8), plain=0.79, rows=450, arms={HOSTED: arm(0.7)}, **given)
    shots = replace(plain, arms={MOST_COMMON: arm(0.1), "few-shot 4": arm(0.79), HOSTED: arm(0.7)})
    found = after_pilot(shots)
    assert found.answer == "yes"
    assert "back after 13,000 queries (1.3 months)" in found.text

    def line(given: Evidence) -> str:
        return {reason.name: reason for reason in after_pilot(given).reasons}["cost"].line

    assert after_pilot(plain).answer != "yes", "a plain prompt that is as good costs no more than a tuned model"
    assert "without tuning the plain prompt is right about as often" in line(plain)
    assert "saves nothing" in line(replace(shots, pays=BreakEven(50.0, -1.0, math.inf, math.inf)))
    assert "too long" in line(replace(shots, pays=BreakEven(50.0, 0.1, 500_000, 50.0)))


def test_a_hosted_model_that_is_far_better_says_no() -> None:
    given = {"tuned_cost": cost("tuned", 0.65, 0.1), "hosted_cost": cost(HOSTED, 0.95, 4.0), "arms": {HOSTED: arm(0.95)}}
    found = after_pilot(evidence((0.3, 0.4, 0.45, 0.5), rows=420, **given))
    assert found.answer == "no"
    assert "a hosted model is right in 95 %" in found.text


def test_a_form_that_prompts_do_not_bring_is_a_reason() -> None:
    forms = {PLAIN: FormShare(0.1, mean_interval([1.0] * 12 + [0.0] * 108))}
    given = {"forms": forms, "form": "numbers", "form_gain": (0.85, 0.76, 0.92)}
    found = {reason.name: reason for reason in after_pilot(evidence(RISING, **given)).reasons}["format"]
    assert found.holds is True
    assert "10 % of the answers are numbers with the best prompt (plain prompt), 95 % after" in found.line
    looked_up = after_pilot(evidence((0.7, 0.7, 0.7, 0.7), nearest=0.7, rows=450, **given))
    assert {reason.name: reason.holds for reason in looked_up.reasons}["format"] is False, "a lookup has the form by itself"
    fine = {PLAIN: FormShare(0.99, mean_interval([1.0] * 120))}
    reasons = after_pilot(evidence(RISING, **{**given, "forms": fine})).reasons
    assert {reason.name: reason.holds for reason in reasons}["format"] is False


def test_where_nothing_works_nothing_is_recommended() -> None:
    found = after_pilot(evidence(FLAT, plain=0.12, nearest=0.12, rows=450))
    assert found.answer == "no"
    assert "try a larger model" in found.text


def test_a_gain_that_was_measured_counts_even_where_the_curve_cannot_tell() -> None:
    base, tuned = scores(0.17), scores(0.32)
    unsure = evidence((0.2, 0.1, 0.3, 0.21), plain=0.17, nearest=0.1, rows=600)
    assert after_pilot(unsure).answer == "not yet"
    shown = replace(unsure, measured=paired_difference(base, tuned), largest=400)
    assert after_pilot(shown).answer == "yes"
    assert "Measured after 400: +15 points [" in after_pilot(shown).text
