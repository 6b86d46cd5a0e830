"""Ship it or not: scores of all arms and the requirements in; an answer with every condition it rests on out.

    ship           every condition is shown to hold
    don't ship     one condition is shown not to hold, or a veto was seen
    inconclusive   neither: the open ones are named, with about how many more items would settle them

That all conditions must be shown keeps the chance of shipping what violates any one of them below (1 − level) / 2, however many there
are (an intersection–union test, Berger 1982); no correction is needed there. That any one may forbid would raise the chance of a wrong
"don't", so what forbids is judged at a level shared among the conditions (Bonferroni). docs/statistics.md simulates the whole rule.
Left out on purpose: weighing a gain against a loss. The margins do that, before the numbers are seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sapwood.errors import DataError
from sapwood.evaluate.experiment import ArmScore, over_samples
from sapwood.evaluate.faults import FaultCount, Labels, count_faults, harm_difference
from sapwood.evaluate.slices import SliceResult, Tags, inside, slice_results
from sapwood.evaluate.verdict import FEWEST_CLUSTERS, FEWEST_ITEMS, ArmResult, Verdict, arm_result, decide, paired_scores
from sapwood.requirements import ErrorType, Requirements, Rule
from sapwood.stats import Difference, Interval, more_items, not_worse
from sapwood.stats.rates import t_quantile

Outcome = Literal["met", "missed", "open"]
Answer = Literal["ship", "don't ship", "inconclusive"]

EXIT_CODES: dict[Answer, int] = {"ship": 0, "don't ship": 3, "inconclusive": 4}
"""For machines that wait for the answer."""


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of the plan."""

    name: str
    outcome: Outcome
    text: str
    """What was found and what was asked for, in a sentence."""
    more: int | None = None
    """About how many more items would settle an open one; None where that cannot be said."""


@dataclass(frozen=True)
class Skills:
    """One general skill, before and after; one score an item on each side."""

    name: str
    before: Sequence[ArmScore]
    after: Sequence[ArmScore]


@dataclass(frozen=True)
class Shipping:
    """The answer and everything it rests on."""

    answer: Answer
    line: str
    checks: tuple[Check, ...]
    candidate: str
    verdict: Verdict | None
    """The candidate against the best alternative; None where no item was scored on both sides."""
    arms: Mapping[str, ArmResult]
    slices: tuple[SliceResult, ...] = ()
    tags_left_out: int = 0
    faults: tuple[FaultCount, ...] = ()
    harm: Difference | None = None
    """Severity-weighted errors an answer, candidate minus best alternative; lower is better."""
    general: Mapping[str, Difference] = field(default_factory=dict)
    against: Mapping[str, Difference] = field(default_factory=dict)
    """The candidate against each other arm."""


def ship(
    scores: Sequence[ArmScore],
    requirements: Requirements,
    *,
    candidate: str,
    alternatives: Sequence[str],
    tags: Tags | None = None,
    general: Sequence[Skills] = (),
    labels: Labels | None = None,
    scorer: str = "",
) -> Shipping:
    """Judge the candidate by the requirements. Raises `DataError` where it, or every alternative, was not asked at all."""
    labels, rule, level = labels or {}, requirements.decision, requirements.decision.level
    means = over_samples(scores)
    by_arm = {arm: [score for score in means if score.arm == arm] for arm in dict.fromkeys(score.arm for score in means)}
    if candidate not in by_arm or not any(arm in by_arm for arm in alternatives):
        raise DataError(
            f"A verdict needs scores of {candidate!r} and of one of {', '.join(alternatives)}; found {', '.join(by_arm) or 'none'}."
        )
    compared = [score for arm in (*alternatives, candidate) for score in by_arm.get(arm, [])]
    try:
        verdict = decide(compared, tuned=candidate, level=level, scorer=scorer)
    except DataError:  # asked, and nothing of it could be scored on both sides
        verdict = None
    best = by_arm[verdict.best_other] if verdict is not None else []
    slices, left_out = slice_results(best, by_arm[candidate], tags or {}, requirements)
    family = _family(requirements)
    faults = count_faults(scores, requirements.errors, labels, level)
    strict = count_faults(by_arm[candidate], requirements.errors, labels, _shared(level, family))
    checks = [_enough(verdict, by_arm[candidate]), *_primary(verdict, by_arm[candidate], requirements, family)]
    checks += _others(best, by_arm[candidate], requirements, family)
    checks += [check for result in slices if result.declared for check in _slice(result, by_arm[candidate], tags or {}, family, rule)]
    checks += [
        check
        for error in requirements.errors
        for check in _error(error, _of(error, candidate, faults), _of(error, candidate, strict), labels)
    ]
    skills = {one.name: found for one in general if (found := paired_scores(one.before, one.after, level)) is not None}
    checks += [_skill(one.name, one.margin, skills.get(one.name), general, family, rule) for one in requirements.general]
    answer = _answer(checks)
    return Shipping(
        answer=answer,
        line=_line(answer, candidate, checks, verdict),
        checks=tuple(checks),
        candidate=candidate,
        verdict=verdict,
        arms={arm: arm_result(of_arm, level) for arm, of_arm in by_arm.items()},
        slices=tuple(slices),
        tags_left_out=left_out,
        faults=tuple(faults),
        harm=harm_difference(best, by_arm[candidate], requirements.errors, labels, level) if requirements.errors else None,
        general=skills,
        against={arm: found for arm in by_arm if arm != candidate and (found := paired_scores(by_arm[arm], by_arm[candidate], level))},
    )


def _family(requirements: Requirements) -> int:
    """Conditions that may forbid by an interval."""
    bounds = [bound for one in requirements.metrics for bound in (one.at_least, one.margin)]
    bounds += [bound for one in requirements.slices for bound in (one.at_least, one.margin)]
    bounds += [error.at_most for error in requirements.errors]
    return 1 + len(requirements.general) + sum(bound is not None for bound in bounds)


def _shared(level: float, family: int) -> float:
    """The level of each of a family that may each forbid."""
    return 1 - (1 - level) / family


def _enough(verdict: Verdict | None, candidate: Sequence[ArmScore]) -> Check:
    """That there is something to judge by at all."""
    name = "enough to judge by"
    if verdict is None:
        unscored = sum(score.value is None for score in candidate)
        return Check(
            name, "open", f"No item was scored on both sides; {unscored} of {len(candidate)} answers of the candidate have no score."
        )
    if verdict.reason:
        d = verdict.difference
        more = max(FEWEST_ITEMS - d.n, FEWEST_CLUSTERS - d.clusters)
        return Check(name, "open", f"{verdict.reason[0].upper()}{verdict.reason[1:]}.", more if more > 0 else None)
    d = verdict.difference
    units = f"{d.n} items" if d.clusters == d.n else f"{d.n} items in {d.clusters} clusters"
    return Check(name, "met", f"{units} were scored on both sides.")


def _primary(verdict: Verdict | None, candidate: Sequence[ArmScore], requirements: Requirements, family: int) -> list[Check]:
    rule, metric = requirements.decision, requirements.primary
    name = f"{metric.name}: gain"
    checks = []
    if verdict is None:
        checks.append(Check(name, "open", "Nothing to compare."))
    else:
        d = verdict.difference
        high = _strict(d, family, rule.level)[1]
        outcome: Outcome = "met" if d.interval.low > rule.gain else "missed" if high <= rule.gain else "open"
        text = f"{points(d)} over the best alternative ({verdict.best_other}); more than {100 * rule.gain:.1f} is asked for."
        checks.append(Check(name, outcome, text, more_items(d, rule.gain, rule.power) if outcome == "open" else None))
    if metric.at_least is not None:
        checks.append(_reaches(f"{metric.name}: level", metric.at_least, candidate, rule.level, family))
    return checks


def _others(before: Sequence[ArmScore], after: Sequence[ArmScore], requirements: Requirements, family: int) -> list[Check]:
    """The metrics that are not primary, from the other scores of each answer."""
    checks, rule = [], requirements.decision
    for metric in requirements.metrics:
        if metric is requirements.primary:
            continue
        first, second = ([replace(score, value=score.others.get(metric.name)) for score in side] for side in (before, after))
        if metric.at_least is not None:
            checks.append(_reaches(f"{metric.name}: level", metric.at_least, second, rule.level, family))
        if metric.margin is not None:
            checks.append(_keeps(f"{metric.name}: no loss", metric.margin, paired_scores(first, second, rule.level), family, rule))
    return checks


def _slice(result: SliceResult, candidate: Sequence[ArmScore], tags: Tags, family: int, rule: Rule) -> list[Check]:
    one, checks = result.slice, []
    if one.at_least is not None:
        checks.append(_reaches(f"{one.name}: level", one.at_least, inside(candidate, one, tags), rule.level, family))
    if one.margin is not None:
        checks.append(_keeps(f"{one.name}: no loss", one.margin, result.difference, family, rule))
    empty = f"No item carries {' and '.join(one.tags)}: the slice is empty."
    return checks if result.items else [Check(check.name, "open", empty) for check in checks]


def _of(error: ErrorType, arm: str, faults: Sequence[FaultCount]) -> FaultCount:
    return next(one for one in faults if one.error == error.name and one.arm == arm)


def _error(error: ErrorType, count: FaultCount, strict: FaultCount, labels: Labels) -> list[Check]:
    checks = []
    unseen = f"Nobody has looked for it yet ({len(labels)} answers are labelled): people find it, on the review pages."
    if error.veto:
        if count.count:
            text = f"Seen in {count.count} of {count.of} answers, such as item {count.items[0]}; one is too many."
            checks.append(Check(f"veto: {error.name}", "missed", text))
        elif count.interval is None:
            checks.append(Check(f"veto: {error.name}", "open", unseen))
        else:
            text = f"Not seen in {count.of} answers; its rate may still be up to {100 * count.interval.high:.1f} %."
            checks.append(Check(f"veto: {error.name}", "met", text))
    if error.at_most is not None:
        name, asked = f"{error.name}: rate", f"at most {100 * error.at_most:.1f} % is asked for."
        if count.interval is None or strict.interval is None:
            checks.append(Check(name, "open", unseen))
        else:
            low, high = count.interval.low, count.interval.high
            outcome: Outcome = "met" if high <= error.at_most else "missed" if strict.interval.low > error.at_most else "open"
            checks.append(Check(name, outcome, f"{count.count} of {count.of} [{100 * low:.1f} %, {100 * high:.1f} %]; {asked}"))
    return checks


def _skill(name: str, margin: float, found: Difference | None, general: Sequence[Skills], family: int, rule: Rule) -> Check:
    if found is None:
        asked = any(one.name == name for one in general)
        return Check(f"{name}: no loss", "open", "No item was scored before and after." if asked else "It was not asked.")
    return _keeps(f"{name}: no loss", margin, found, family, rule)


def _reaches(name: str, wanted: float, scores: Sequence[ArmScore], level: float, family: int) -> Check:
    """A mean score against what it must reach."""
    arm, strict = arm_result(scores, level), arm_result(scores, _shared(level, family))
    if arm.interval is None or arm.rate is None or strict.interval is None:
        return Check(name, "open", "Nothing of it could be scored.")
    low, high = arm.interval.low, arm.interval.high
    outcome: Outcome = "met" if low >= wanted else "missed" if strict.interval.high < wanted else "open"
    text = f"{100 * arm.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}]; {100 * wanted:.0f} is asked for."
    return Check(name, outcome, text, _more_for_rate(arm, wanted) if outcome == "open" else None)


def _more_for_rate(arm: ArmResult, wanted: float) -> int | None:
    if arm.rate is None or arm.interval is None or arm.rate <= wanted:
        return None
    apart, half = arm.rate - wanted, arm.rate - arm.interval.low
    scored = arm.items - arm.unscored
    return max(1, math.ceil(scored * ((half / apart) ** 2 - 1)))


def _keeps(name: str, margin: float, found: Difference | None, family: int, rule: Rule) -> Check:
    """Non-inferiority: shown to lose less than the margin, shown to lose more, or open."""
    if found is None:
        return Check(name, "open", "No item of it was scored on both sides.")
    text = f"{points(found)}; a loss of {100 * margin:.1f} is allowed."
    if (held := not_worse(found, margin)) == "held":
        return Check(name, "met", text)
    strict = replace(found, interval=Interval(*_strict(found, family, rule.level), rule.level, found.interval.method))
    if held == "lost" and not_worse(strict, margin) == "lost":
        return Check(name, "missed", text)
    return Check(name, "open", text, more_items(found, -margin, rule.power))


def _strict(found: Difference, family: int, level: float) -> tuple[float, float]:
    """The interval at the level that a family of conditions shares, stretched by the ratio of t quantiles."""
    freedom = max(1, found.clusters - 1)
    stretch = t_quantile(_shared(level, family), freedom) / t_quantile(level, freedom)
    middle = (found.interval.low + found.interval.high) / 2
    half = stretch * (found.interval.high - found.interval.low) / 2
    return max(-1.0, middle - half), min(1.0, middle + half)


def _answer(checks: Sequence[Check]) -> Answer:
    outcomes = {check.outcome for check in checks}
    enough = checks[0].outcome == "met"
    vetoed = any(check.outcome == "missed" and check.name.startswith("veto: ") for check in checks)
    if vetoed or ("missed" in outcomes and enough):
        return "don't ship"
    return "ship" if outcomes == {"met"} else "inconclusive"


def _line(answer: Answer, candidate: str, checks: Sequence[Check], verdict: Verdict | None) -> str:
    if answer == "ship":
        assert verdict is not None
        return (
            f"Ship {candidate}: {points(verdict.difference)} over {verdict.best_other}, and all {len(checks)} conditions of the plan hold."
        )
    if answer == "don't ship":
        missed = [check for check in checks if check.outcome == "missed"]
        return f"Do not ship {candidate}. " + " ".join(f"Missed is {check.name} – {check.text}" for check in missed)
    waiting = [check for check in checks if check.outcome != "met"]
    known = [check.more for check in waiting]
    said = f"Inconclusive for {candidate}: {len(waiting)} of {len(checks)} conditions {'is' if len(waiting) == 1 else 'are'} open"
    said += f" ({', '.join(check.name for check in waiting)})"
    if all(more is not None for more in known):
        return f"{said}; about {max(more or 0 for more in known):,} more items would settle it, were things as they look."
    return f"{said}; see each for what would settle it."


def points(found: Difference) -> str:
    """A difference and its interval, in points."""
    mean, low, high = (_signed(value) for value in (found.mean, found.interval.low, found.interval.high))
    return f"{mean} points [{low}, {high}]"


def _signed(share: float) -> str:
    value = round(100 * share, 1)
    return f"{'−' if value < 0 else '+' if value > 0 else ''}{abs(value):.1f}"
