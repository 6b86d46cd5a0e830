"""What a study found, as one plain record: the page, Markdown, CSV, JUnit and `--json` all read it, so that they cannot disagree.

In: plan, answer, scores. Out: a dictionary of numbers and sentences. Left out on purpose: markup, and the items (see `study_files`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any

import numpy as np

from sapwood.errors import DataError
from sapwood.evaluate.costs import ArmCost
from sapwood.evaluate.declared import Declared
from sapwood.evaluate.experiment import ArmScore, over_samples
from sapwood.evaluate.several_answers import several_answers
from sapwood.evaluate.shipping import Shipping
from sapwood.evaluate.spending import break_evens, costs_of, pareto
from sapwood.evaluate.verdict import ArmResult, arm_result, difference_record
from sapwood.records import Ended
from sapwood.stats import ratio_interval, variance_split

Record = dict[str, Any]


def study_record(
    declared: Declared,
    shipping: Shipping | None,
    scores: Sequence[ArmScore],
    training_seconds: float,
    notes: Sequence[str],
    counts: Mapping[str, float] | None = None,
) -> Record:
    """Everything but the items. `counts` says how many logged queries items stand for, where that is known."""
    plan, needs = declared.plan, declared.plan.requirements
    costs = costs_of(scores, needs.prices)
    line = shipping.line if shipping is not None else "No arm was tuned, so nothing can be shipped: the arms are compared below."
    evens = break_evens(plan.candidate, costs, training_seconds, needs.prices) if shipping is not None else {}
    return {
        "name": needs.name,
        "about": needs.about,
        "answer": shipping.answer if shipping is not None else "no candidate",
        "line": line,
        "candidate": plan.candidate,
        "best_other": shipping.verdict.best_other if shipping is not None and shipping.verdict is not None else None,
        "plan": {
            "hash": plan.hash,
            "declared": declared.when,
            "before_any_answer": declared.before,
            "lines": plan.lines_for_people(),
            "requirements": needs.hash,
            "items": plan.items.hash,
        },
        "checks": [{"name": one.name, "outcome": one.outcome, "text": one.text, "more": one.more} for one in shipping.checks]
        if shipping
        else [],
        "difference": difference_record(shipping.verdict.difference) if shipping and shipping.verdict else None,
        "arms": [_arm(arm, scores, costs[arm], shipping, pareto(costs)) for arm in costs],
        "slices": [_slice(one) for one in shipping.slices] if shipping else [],
        "slices_left_out": shipping.tags_left_out if shipping else 0,
        "errors": _errors(shipping, declared) if shipping else [],
        "harm": difference_record(shipping.harm) if shipping and shipping.harm else None,
        "general": {name: difference_record(one) for name, one in shipping.general.items()} if shipping else {},
        "break_even": {arm: one.to_dict() for arm, one in evens.items()},
        "training_seconds": training_seconds,
        "as_logged": _as_logged(shipping, scores, plan.candidate, counts or {}),
        "several": [found for arm in costs if (found := several_answers(scores, arm)) is not None],
        "variance": _variance(scores, plan.candidate or plan.base),
        "caveats": _caveats(declared, shipping, scores),
        "notes": list(notes),
    }


def _arm(arm: str, scores: Sequence[ArmScore], cost: ArmCost, shipping: Shipping | None, line: Sequence[str]) -> Record:
    answers = [score for score in scores if score.arm == arm]
    result = arm_result(answers) if shipping is None else shipping.arms[arm]
    against = shipping.against.get(arm) if shipping is not None else None
    seconds = [score.seconds for score in answers]
    return {
        "name": arm,
        **_result(result),
        "against": difference_record(against) if against is not None else None,
        "answers": len(answers),
        "failed": sum(score.ended == Ended.ERROR for score in answers),
        "cut": sum(score.ended == Ended.LENGTH for score in answers),
        "seconds": {"p50": _quantile(seconds, 50), "p95": _quantile(seconds, 95)},
        "pareto": arm in line,
        "cost": cost.to_dict(),
    }


def _result(result: ArmResult) -> Record:
    found = result.to_dict()
    return {key: found[key] for key in ("rate", "low", "high", "method", "n", "unscored", "items")}


def _quantile(values: Sequence[float], percent: int) -> float | None:
    return None if not values else values[0] if len(values) == 1 else quantiles(values, n=100, method="inclusive")[percent - 1]


def _slice(one: Any) -> Record:
    return {
        "name": one.slice.name,
        "tags": list(one.slice.tags),
        "declared": one.declared,
        "items": one.items,
        "before": _result(one.before),
        "after": _result(one.after),
        "difference": difference_record(one.difference) if one.difference is not None else None,
        "adjusted": one.adjusted,
        "marked": one.marked,
    }


def _errors(shipping: Shipping, declared: Declared) -> list[Record]:
    found = []
    for error in declared.plan.requirements.errors:
        counts = [one for one in shipping.faults if one.error == error.name]
        arms = {
            one.arm: {
                "count": one.count,
                "of": one.of,
                "low": one.interval and one.interval.low,
                "high": one.interval and one.interval.high,
            }
            for one in counts
        }
        found.append({"name": error.name, "about": error.about, "severity": error.severity, "veto": error.veto, "arms": arms})
    return found


def _as_logged(shipping: Shipping | None, scores: Sequence[ArmScore], candidate: str, counts: Mapping[str, float]) -> Record | None:
    """The difference over the queries as they were logged, each item weighing as many as it stands for; None where nobody counted.

    A sample that is even over its strata shows each of them; what people will meet is their mix. Items that stand for none (edge cases)
    are left out.
    """
    if shipping is None or shipping.verdict is None or not counts:
        return None
    of_arm: dict[str, dict[str, ArmScore]] = {}
    for score in over_samples(scores):
        of_arm.setdefault(score.arm, {})[score.item] = score
    before, after = of_arm[shipping.verdict.best_other], of_arm[candidate]
    both = [
        (counts[item], a.value, b.value, b)
        for item, b in after.items()
        if item in counts and (a := before.get(item)) is not None and a.value is not None and b.value is not None
    ]
    if not both:
        return None
    clusters = [score.cluster if score.cluster is not None else ("item", score.item) for *_, score in both]
    weights = [weight for weight, *_ in both]
    level = shipping.verdict.difference.interval.level
    mean, interval = ratio_interval([weight * (b - a) for weight, a, b, _ in both], weights, level, clusters)
    return {
        "mean": mean,
        "low": max(-1.0, interval.low),
        "high": min(1.0, interval.high),
        "level": interval.level,
        "n": len(both),
        "queries": sum(weights),
        "before": sum(weight * a for weight, a, _, _ in both) / sum(weights),
        "after": sum(weight * b for weight, _, b, _ in both) / sum(weights),
    }


def _variance(scores: Sequence[ArmScore], arm: str) -> Record | None:
    """Items against samples, for the arm in question, over items whose every sample was judged."""
    of_item: dict[str, list[float | None]] = {}
    for score in scores:
        if score.arm == arm:
            of_item.setdefault(score.item, []).append(score.value)
    most = max((len(values) for values in of_item.values()), default=0)
    whole = [values for values in of_item.values() if len(values) == most and None not in values]
    if most < 2 or len(whole) < 2:
        return None
    try:
        split = variance_split(np.array(whole, dtype=float)[None])
    except DataError:
        return None
    return {
        "arm": arm,
        "item": split.item,
        "sampling": split.sampling,
        "items": split.items,
        "samples": split.samples,
        "advice": split.advice,
    }


def _caveats(declared: Declared, shipping: Shipping | None, scores: Sequence[ArmScore]) -> list[str]:
    said = [] if declared.before else ["The plan was declared AFTER answers were there: read this as a search, not as a test."]
    if shipping is not None and shipping.verdict is not None:
        said += shipping.verdict.caveats
    unasked = _unasked(declared, scores)
    said += [f"{arm!r} was asked {count} of {declared.plan.items.count} items." for arm, count in unasked.items()]
    return said


def _unasked(declared: Declared, scores: Sequence[ArmScore]) -> Mapping[str, int]:
    counts: dict[str, set[str]] = {}
    for score in scores:
        counts.setdefault(score.arm, set()).add(score.item)
    return {arm: len(items) for arm, items in counts.items() if len(items) < declared.plan.items.count}
