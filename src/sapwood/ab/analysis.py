"""What may be concluded now: records in, effects with intervals that hold at any time, checks, and one decision out.

The chance of any false alarm, over the whole life of an experiment, is at most the plan's alpha: four fifths of it go to the primary
metric, one fifth to the guardrails, each divided evenly over the comparisons it has. The check of the split has 0.1 % of its own. Every
number is a function of the plan and the records alone, so two that look see the same. Left out on purpose: any number that does not
survive looking, and an effect while the split is broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sapwood.ab.outcomes import Settled, comparable, settled, split_units
from sapwood.ab.plan import Metric, Plan
from sapwood.ab.records import Records
from sapwood.stats import Effect, effect_at, effect_over_time, split_evidence, units_for, units_of

Decision = Literal["stop for harm", "ship", "no gain worth having", "keep running", "split broken"]

SPLIT_ALPHA = 0.001
"""Chance that a split that is right is ever called broken."""
PRIMARY_PART = 0.8
"""Part of alpha that the primary metric has where there are guardrails."""
POINTS = 40
"""Moments at which the picture shows the interval."""


@dataclass(frozen=True, slots=True)
class ArmValue:
    """What one arm reached, in the metric's own units."""

    units: int
    mean: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of one treatment against the control. Gains are in the metric's own units; positive is better."""

    metric: Metric
    control: ArmValue
    treated: ArmValue
    gain: Effect
    unsettled: int
    silent: tuple[int, int]
    late: int
    silence_differs: bool
    """Whether the share of units without an outcome differs between the arms: the gain is one among those who answered, then."""
    over_time: tuple[Effect, ...] = ()
    variance: float = 0.25
    """Of outcomes within an arm, on the scale of 0..1."""
    told: float = 0.0
    """What the units so far tell, in units of an even split."""

    @property
    def harmed(self) -> bool:
        """Shown to be worse than the margin allows."""
        return self.gain.high < -self.metric.margin

    @property
    def safe(self) -> bool:
        """Shown to be no worse than the margin allows; without a margin, not shown to be harmed."""
        return self.gain.low > -self.metric.margin if self.metric.margin else not self.harmed


@dataclass(frozen=True, slots=True)
class Comparison:
    """One treatment against the control."""

    arm: str
    units: int
    """Units that chance sent to one of the two."""
    primary: Measured
    guardrails: tuple[Measured, ...]
    harm: str
    """What it is shown to do worse, as a sentence; empty where it is not. Said of a broken split too: to stop is the safe side."""
    switched_off: str
    """Why it is switched off; empty where it is on."""
    decision: Decision
    line: str
    """The decision as a sentence."""
    more: int | None
    """About how many more units; None where no more are needed."""


@dataclass(frozen=True, slots=True)
class Split:
    """Whether units came to the arms as planned."""

    arms: tuple[tuple[str, int, float], ...]
    """(name, units, units expected)"""
    p_value: float
    """Anytime-valid."""
    broken: bool


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that may be said now."""

    plan: Plan
    decision: Decision
    line: str
    split: Split
    comparisons: tuple[Comparison, ...]
    units: int
    chosen: int
    """Units sent to an arm by hand, not counted."""
    exposures: int
    outcomes: int
    started: float
    now: float
    switches: tuple[str, ...]
    """What was switched off and on, in words."""


def analyse(records: Records, *, pictures: bool = True, advance: Callable[[int, int, str], None] | None = None) -> Analysis:
    """Analyse an experiment. `pictures` adds the interval over time; `advance` hears of (done, in all, words)."""
    plan = records.plan
    split = _split(records)
    comparisons = []
    for treatment in range(1, len(plan.arms)):
        if advance:
            advance(treatment - 1, len(plan.treatments), plan.arms[treatment].name)
        comparisons.append(_compare(records, treatment, split, pictures))
    decision, line = _overall(comparisons, split)
    return Analysis(
        plan=plan,
        decision=decision,
        line=line,
        split=split,
        comparisons=tuple(comparisons),
        units=len(records.units),
        chosen=sum(unit.chosen for unit in records.units),
        exposures=records.exposures,
        outcomes=len(records.outcomes),
        started=records.started,
        now=records.now,
        switches=tuple(f"{plan.arms[event.arm].name} switched {'on' if event.on else 'off'}: {event.why}" for event in records.events),
    )


def alphas(plan: Plan) -> tuple[float, float]:
    """(alpha of a comparison's primary metric, one-sided alpha of one guardrail in it)"""
    treatments, guards = len(plan.treatments), len(plan.guardrails)
    if not guards:
        return plan.alpha / treatments, 0.0
    return PRIMARY_PART * plan.alpha / treatments, (1 - PRIMARY_PART) * plan.alpha / (treatments * guards)


def measure(data: Settled, metric: Metric, plan: Plan, alpha: float, *, pictures: bool = False) -> Measured:
    """One metric, with an interval of level 1 − alpha."""
    units = units_of(data.treated_N, data.chance_N, data.gain_N, planned=plan.units)
    n, span = len(data.gain_N), metric.high - metric.low
    shown = sorted({round(x) for x in np.geomspace(min(10, n), n, POINTS)}) if pictures and n else []
    over_time = tuple(_scaled(effect, span) for effect in effect_over_time(units, alpha, shown))
    arms = [data.value_N[~data.treated_N], data.value_N[data.treated_N]]
    values = [ArmValue(len(arm), float(arm.mean()) if len(arm) else None) for arm in arms]
    return Measured(
        metric=metric,
        control=values[0],
        treated=values[1],
        gain=over_time[-1] if over_time else _scaled(effect_at(units, n, alpha), span),
        unsettled=data.unsettled,
        silent=data.silent,
        late=data.late,
        silence_differs=_silence_differs(data),
        over_time=over_time,
        variance=_within(data) if n > 1 else 0.25,
        told=float(units.weight_N.sum()),
    )


def _compare(records: Records, treatment: int, split: Split, pictures: bool) -> Comparison:
    plan, arm = records.plan, records.plan.arms[treatment]
    alpha, guard_alpha = alphas(plan)
    metric = plan.metric(plan.primary)
    primary = measure(settled(records, treatment, metric), metric, plan, alpha, pictures=pictures)
    guardrails = tuple(
        measure(settled(records, treatment, plan.metric(name)), plan.metric(name), plan, 2 * guard_alpha) for name in plan.guardrails
    )
    off = next((event for event in reversed(records.events) if event.arm == treatment), None)
    why = off.why if off is not None and not off.on else ""
    harm = _harm(arm.name, plan, primary, guardrails)
    stopped = harm or (f"{arm.name} is switched off: {why}" if why else "")
    decision, line, more = _decide(arm.name, plan, primary, guardrails, stopped, alpha)
    if split.broken:
        decision, line, more = "split broken", f"{arm.name}: units did not come as planned, so no effect is to be believed.", None
    return Comparison(arm.name, len(comparable(records, treatment)), primary, guardrails, harm, why, decision, line, more)


def _harm(arm: str, plan: Plan, primary: Measured, guardrails: Sequence[Measured]) -> str:
    harmed = [guard.metric.name for guard in guardrails if guard.harmed]
    if primary.gain.high < 0:
        return f"{arm} is worse than {plan.control.name}: {_said(primary)}."
    return f"{arm} harms {' and '.join(harmed)} by more than the margin allows; {_said(primary)}." if harmed else ""


def _decide(
    arm: str, plan: Plan, primary: Measured, guardrails: Sequence[Measured], stopped: str, alpha: float
) -> tuple[Decision, str, int | None]:
    """(decision, its sentence, units that are still needed) where the split is right."""
    gain, said = primary.gain, _said(primary)
    if stopped:
        return "stop for harm", stopped, None
    if gain.high < plan.effect:
        return "no gain worth having", f"{arm} does not gain {plan.effect:g} over {plan.control.name}: {said}.", None
    waiting = " and ".join(guard.metric.name for guard in guardrails if not guard.safe)
    if gain.low > 0 and not waiting:
        return "ship", f"{arm} is better than {plan.control.name}: {said}.", None
    more = _more(plan, arm, primary, guardrails, alpha)
    if gain.low > 0:
        return "keep running", f"{arm} is better ({said}), but harm to {waiting} is open: about {more:,} more units.", more
    return "keep running", f"{arm} is not told apart from {plan.control.name} yet: {said}; about {more:,} more units.", more


def _said(measured: Measured) -> str:
    gain = measured.gain
    return f"{signed(gain.mean)} [{signed(gain.low)}, {signed(gain.high)}] in {measured.metric.name}"


def _more(plan: Plan, arm: str, primary: Measured, guardrails: Sequence[Measured], alpha: float) -> int:
    """Units until the gain that is worth it, or the one that is seen where it is larger, shows four times in five."""
    chances = plan.chances(len(plan.ramp) - 1 if plan.ramp else 0)
    treated = chances[[one.name for one in plan.arms].index(arm)]
    share = treated / (treated + chances[0]) if treated else 0.5

    def beyond(measured: Measured, delta: float, alpha: float) -> int:
        part = min(1.0, delta / (measured.metric.high - measured.metric.low))
        variance = max(measured.variance, 1e-4) / (share * (1 - share))
        return units_for(part, variance, alpha, plan.units, share, 0.8) - int(measured.told / (4 * share * (1 - share)))

    needed = [beyond(primary, max(plan.effect, primary.gain.mean), alpha) if primary.gain.low <= 0 else 0]
    for guard in guardrails:
        if not guard.safe and guard.metric.margin:
            room = max(guard.metric.margin + min(0.0, guard.gain.mean), guard.metric.margin / 10)
            needed.append(beyond(guard, room, 2 * alphas(plan)[1]))
    least = max(10, primary.gain.n // 10)
    return two_digits(max(least, *needed))


def _split(records: Records) -> Split:
    arms, chances = split_units(records)
    names = [arm.name for arm in records.plan.arms]
    if not arms:
        return Split(tuple((name, 0, 0.0) for name in names), 1.0, False)
    chances_NK = np.array(chances)
    highest = float(split_evidence(arms, chances_NK).max())
    counts, expected = np.bincount(arms, minlength=len(names)), chances_NK.sum(axis=0)
    rows = tuple((name, int(counts[place]), float(expected[place])) for place, name in enumerate(names))
    return Split(rows, math.exp(-max(0.0, highest)), highest >= math.log(1 / SPLIT_ALPHA))


def _within(data: Settled) -> float:
    """Variance of gains around the mean of their arm."""
    arms = [data.gain_N[~data.treated_N], data.gain_N[data.treated_N]]
    return float(sum(((arm - arm.mean()) ** 2).sum() for arm in arms if len(arm)) / len(data.gain_N))


def _silence_differs(data: Settled) -> bool:
    """Whether units with an outcome came from the arms in other shares than chance gives, tested as the split is."""
    if not sum(data.silent) or not len(data.treated_N):
        return False
    chances = np.stack([1 - data.chance_N, data.chance_N], axis=1)
    return float(split_evidence(data.treated_N.astype(int), chances).max()) >= math.log(1 / SPLIT_ALPHA)


def _overall(comparisons: Sequence[Comparison], split: Split) -> tuple[Decision, str]:
    """One decision: of arms to ship the one with the largest gain."""
    if split.broken:
        return "split broken", "Units did not come to the arms as planned: find out why before anything else; no effect is to be believed."
    order: tuple[Decision, ...] = ("ship", "keep running", "stop for harm", "no gain worth having")
    best = min(comparisons, key=lambda one: (order.index(one.decision), -one.primary.gain.mean))
    return best.decision, best.line


def _scaled(effect: Effect, span: float) -> Effect:
    return Effect(effect.n, effect.mean * span, effect.low * span, effect.high * span, effect.level)


def signed(value: float) -> str:
    """A gain as people read it: with its sign, and a real minus."""
    return f"{value:+.3g}".replace("-", "−")


def two_digits(n: int) -> int:
    """Rounded up: nobody knows it better."""
    unit = int(10 ** max(0, len(str(n)) - 2))
    return math.ceil(n / unit) * unit


def as_dict(analysis: Analysis) -> dict[str, Any]:
    """For machines."""

    def effect(found: Effect) -> dict[str, Any]:
        return {"n": found.n, "gain": found.mean, "low": found.low, "high": found.high, "level": found.level}

    def measured(found: Measured) -> dict[str, Any]:
        return {
            "metric": found.metric.name,
            "better": found.metric.better,
            **effect(found.gain),
            "control": {"units": found.control.units, "mean": found.control.mean},
            "treated": {"units": found.treated.units, "mean": found.treated.mean},
            "harmed": found.harmed,
            "safe": found.safe,
            "unsettled": found.unsettled,
            "silent": list(found.silent),
            "late": found.late,
            "silence_differs": found.silence_differs,
        }

    return {
        "experiment": analysis.plan.name,
        "plan_hash": analysis.plan.hash,
        "decision": analysis.decision,
        "line": analysis.line,
        "split": {
            "broken": analysis.split.broken,
            "p_value": analysis.split.p_value,
            "arms": [{"name": name, "units": units, "expected": expected} for name, units, expected in analysis.split.arms],
        },
        "comparisons": [
            {
                "arm": one.arm,
                "decision": one.decision,
                "line": one.line,
                "units": one.units,
                "more": one.more,
                "harm": one.harm,
                "switched_off": one.switched_off,
                "primary": measured(one.primary),
                "guardrails": [measured(guard) for guard in one.guardrails],
                "over_time": [effect(point) for point in one.primary.over_time],
            }
            for one in analysis.comparisons
        ],
        "units": analysis.units,
        "chosen": analysis.chosen,
        "exposures": analysis.exposures,
        "outcomes": analysis.outcomes,
        "started": analysis.started,
        "now": analysis.now,
        "switches": list(analysis.switches),
    }
