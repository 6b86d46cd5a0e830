"""From records to a decision: what counts, what is late, what is alarmed, and how often an A/A experiment is called anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ab.trial import PLAN, plan_with
from sapwood.ab.analysis import Analysis, alphas, analyse, as_dict
from sapwood.ab.outcomes import Given, aggregated, is_on, settled
from sapwood.ab.plan import Arm, Metric, Plan, Step
from sapwood.ab.records import Event, OutcomeRow, Records, UnitRow

HOUR = 3600.0


def records(plan: Plan, arms: Sequence[int], outcomes: Sequence[tuple[int, str, float, float]], **more: object) -> Records:
    """Unit i comes at second i; outcomes are (unit, metric, value, at)."""
    found = Records(
        plan=plan,
        started=0.0,
        now=1e9,
        units=[UnitRow(i, arm, 0, False, float(i)) for i, arm in enumerate(arms)],
        outcomes=[OutcomeRow(unit, None, metric, value, at, None) for unit, metric, value, at in outcomes],
        events=[],
        exposures=len(arms),
    )
    return replace(found, **more)


def simulated(plan: Plan, n: int, rates: Sequence[float], seed: int, seconds: Sequence[float] = (5, 5)) -> Records:
    rng = np.random.default_rng(seed)
    arms = rng.choice(len(plan.arms), n, p=plan.chances(0))
    outcomes = []
    for unit, arm in enumerate(arms):
        outcomes.append((unit, "resolved", float(rng.random() < rates[arm]), float(unit)))
        outcomes.append((unit, "seconds", float(min(20, rng.exponential(seconds[arm]))), float(unit)))
    return records(plan, arms.tolist(), outcomes)


def test_a_gain_is_shipped_a_harm_is_stopped_and_the_rest_goes_on() -> None:
    for rates, seconds, n, decision in [
        ((0.4, 0.6), (5, 4), 900, "ship"),
        ((0.6, 0.4), (5, 5), 700, "stop for harm"),
        ((0.5, 0.6), (3, 9), 400, "stop for harm"),
        ((0.5, 0.53), (5, 5), 300, "keep running"),
        ((0.5, 0.5), (5, 5), 12000, "no gain worth having"),
    ]:
        found = analyse(simulated(PLAN, n, rates, 1, seconds), pictures=False)
        assert found.decision == decision, found.line
        assert (found.comparisons[0].more is not None) == (decision == "keep running")
    assert analyse(simulated(PLAN, 400, (0.5, 0.6), 1, (3, 9))).comparisons[0].guardrails[0].harmed


def test_a_guardrail_that_is_open_holds_shipping_up() -> None:
    plan = plan_with(metrics=(PLAN.metrics[0], replace(PLAN.metrics[1], margin=0.5)))
    found = analyse(simulated(plan, 900, (0.4, 0.6), 1, (5, 5)), pictures=False)
    assert found.decision == "keep running"
    assert "harm to seconds is open" in found.line


def test_an_experiment_without_units_keeps_running() -> None:
    found = analyse(records(PLAN, [], []))
    assert found.decision == "keep running"
    assert as_dict(found)["comparisons"][0]["primary"]["n"] == 0


def test_a_broken_split_shows_no_effect() -> None:
    rng = np.random.default_rng(3)
    arms = (rng.random(3000) < 0.58).astype(int).tolist()
    found = analyse(records(PLAN, arms, [(unit, "resolved", float(arm), float(unit)) for unit, arm in enumerate(arms)]), pictures=False)
    assert found.decision == "split broken"
    assert found.split.p_value < 0.001
    assert "+" not in found.line


def test_outcomes_count_within_the_window_and_units_when_it_has_ended() -> None:
    plan = plan_with(window="1h", metrics=(Metric(name="resolved", missing=0.0), PLAN.metrics[1]))
    found = records(
        plan,
        [0, 1, 0, 1],
        [(0, "resolved", 1, 10), (0, "resolved", 0, 2 * HOUR), (1, "resolved", 0, 20), (1, "resolved", 1, 30), (3, "resolved", 1, 40)],
        now=HOUR + 2.5,
    )
    data = settled(found, 1, plan.metrics[0])
    assert data.value_N.tolist() == [1.0, 0.5, 0.0]  # one was late; a mean of two; none came
    assert data.treated_N.tolist() == [False, True, False]
    assert (data.late, data.unsettled) == (1, 1)
    left_out = settled(found, 1, replace(plan.metrics[0], missing=None))
    assert left_out.value_N.tolist() == [1.0, 0.5]
    assert left_out.silent == (1, 0)


def test_without_a_window_first_outcomes_count_in_their_order() -> None:
    found = records(PLAN, [0, 1, 1], [(2, "resolved", 1, 5), (0, "resolved", 0, 6), (2, "resolved", 0, 7)])
    data = settled(found, 1, PLAN.metrics[0])
    assert data.value_N.tolist() == [1.0, 0.0]
    assert data.treated_N.tolist() == [True, False]
    assert data.unsettled == 1


def test_the_last_word_on_an_answer_counts() -> None:
    plan = plan_with(window="1h")
    rows = [OutcomeRow(0, "a", "resolved", value, at, 0) for value, at in ((1.0, 1.0), (0.0, 2.0))]
    rows.append(OutcomeRow(0, "b", "resolved", 1.0, 3.0, 0))
    data = settled(replace(records(plan, [0], []), outcomes=rows), 1, PLAN.metrics[0])
    assert data.value_N.tolist() == [0.5]


@pytest.mark.parametrize(("how", "number"), [("mean", 0.5), ("max", 0.9), ("min", 0.2), ("sum", 1.0), ("first", 0.4), ("last", 0.2)])
def test_outcomes_of_a_unit_become_one(how: str, number: float) -> None:
    given = [Given(place, 0.0, value) for place, value in enumerate((0.4, 0.9, 0.2))]
    assert aggregated(given, Metric(name="m", aggregate=how)) == pytest.approx(number)  # type: ignore[arg-type]


def test_lower_is_better_where_the_plan_says_so() -> None:
    plan = plan_with(primary="seconds", guardrails=(), effect=0.5)
    found = analyse(simulated(plan, 2000, (0.5, 0.5), 2, (6, 3)), pictures=False)
    assert found.decision == "ship"
    assert found.comparisons[0].primary.gain.mean == pytest.approx(2.8, abs=0.6)
    assert found.comparisons[0].primary.treated.mean < found.comparisons[0].primary.control.mean


def test_what_a_fallback_answered_does_not_count() -> None:
    off = [Event(2.5, 1, False, "harm")]
    rows = [
        OutcomeRow(1, "a", "resolved", 1.0, 2.0, 1),
        OutcomeRow(1, "b", "resolved", 0.0, 3.0, 0),  # the control answered a treated unit
        OutcomeRow(3, "c", "resolved", 0.0, 4.0, 0),  # came after the fallback
        OutcomeRow(4, "d", "resolved", 1.0, 5.0, 0),  # a control of that time has nobody to be compared with
        OutcomeRow(0, "e", "resolved", 0.0, 6.0, 0),
    ]
    found = replace(records(PLAN, [0, 1, 0, 1, 0], []), outcomes=rows, events=off)
    data = settled(found, 1, PLAN.metrics[0])
    assert data.value_N.tolist() == [1.0], "what the control's units gave after it has nobody to be compared with either"
    hour = settled(replace(found, plan=plan_with(window="1h")), 1, PLAN.metrics[0])
    assert hour.value_N.tolist() == [], "the fallback came within every unit's window"
    result = analyse(found)
    assert result.decision == "stop for harm"
    assert "switched off: harm" in result.line


@pytest.mark.parametrize("window", ["0s", "10m"])
def test_an_arm_without_an_effect_does_no_harm_for_having_been_off_for_a_while(window: str) -> None:
    """Twins in both arms, asked five times, a minute apart, who say the same, if anything; the treatment is off a third of the time."""
    metric = Metric(name="resolved", high=5, aggregate="sum", missing=None if window == "0s" else 0.0)
    plan = plan_with(window=window, metrics=(metric,), guardrails=())
    events = [Event(1800.0 * turn + 1200.0 * (not on), 1, on, "by hand") for turn in range(3) for on in (True, False)]
    told = np.random.default_rng(7).choice([None, 0.0, 1.0], (2000, 5), p=(0.6, 0.2, 0.2)).tolist()
    units, rows = [], []
    for unit in range(4000):
        arm, seen = unit % 2, float(unit // 2 * 2)
        units.append(UnitRow(unit, arm, 0, False, seen))
        for number, said in enumerate(told[unit // 2]):
            served = arm if is_on(events, 1, at := seen + 60.0 * number) else 0
            rows += [OutcomeRow(unit, f"{unit}-{number}", "resolved", said, at, served)] if said is not None else []
    rows.sort(key=lambda row: row.at)
    found = settled(replace(records(plan, [], []), units=units, outcomes=rows, events=events), 1, metric)
    control, treated = (sorted(found.value_N[found.treated_N == arm]) for arm in (False, True))
    assert len(control) > 500
    assert treated == control, "those of the treatment whose window was cut short would give less, or nothing"


def test_units_that_had_no_chance_of_the_treatment_do_not_count() -> None:
    plan = plan_with(ramp=(Step(after="0s", to=0.0), Step(after="1h", to=1.0)))
    units = [UnitRow(0, 0, 0, False, 1.0), UnitRow(1, 0, 1, False, HOUR + 1), UnitRow(2, 1, 1, False, HOUR + 2)]
    found = records(plan, [], [(unit, "resolved", 1.0, HOUR + 3) for unit in range(3)], units=units)
    assert len(settled(found, 1, PLAN.metrics[0]).value_N) == 2


def test_silence_that_depends_on_the_arm_is_told() -> None:
    plan = plan_with(window="1h", guardrails=())
    rng = np.random.default_rng(4)
    arms = (rng.random(3000) < 0.5).astype(int).tolist()
    for shares, differs in (((0.5, 0.5), False), ((0.5, 0.3), True)):
        outcomes = [(unit, "resolved", 1.0, float(unit)) for unit, arm in enumerate(arms) if rng.random() < shares[arm]]
        found = analyse(records(plan, arms, outcomes), pictures=False)
        assert found.comparisons[0].primary.silence_differs is differs


def test_alpha_is_shared_out_and_no_more_than_there_is() -> None:
    three = plan_with(arms=(*PLAN.arms[:1], Arm(name="a", share=0.3), Arm(name="b", share=0.3)))
    primary, guard = alphas(three)
    assert 2 * primary + 2 * guard == pytest.approx(three.alpha)
    assert 0 < guard < primary
    assert alphas(plan_with(guardrails=()))[0] == PLAN.alpha


def alarm(found: Analysis) -> bool:
    return found.decision in ("ship", "stop for harm", "split broken") or any(one.primary.gain.shown for one in found.comparisons)


def test_nothing_false_is_said_of_experiments_that_are_looked_at() -> None:
    """Whole A/A experiments with a guardrail, looked at six times each; docs/ab-tests.md has 2,000, looked at after every outcome."""
    alarms = 0
    for seed in range(40):
        whole = simulated(PLAN, 300, (0.3, 0.3), 100 + seed)
        looks = (replace(whole, units=whole.units[:n], outcomes=whole.outcomes[: 2 * n]) for n in range(50, 301, 50))
        alarms += any(alarm(analyse(look, pictures=False)) for look in looks)
    assert alarms / 40 <= 0.05
