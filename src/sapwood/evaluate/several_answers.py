"""What several answers to each item show, arm by arm: at least one right, all right, the commonest right, and how much they differ.

In: scores of n samples an item. Out: one record an arm, each number with an interval over items and their clusters. Items that lack a
sample, or hold one that could not be judged, are left out and counted. Left out on purpose: k below n; fewer answers are another study.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sapwood.evaluate.experiment import ArmScore
from sapwood.evaluate.repeated import distinct_answers, distinct_n, maj_at_k, pass_at_k, pass_hat_k
from sapwood.stats import mean_interval

Record = dict[str, Any]


def several_answers(scores: Sequence[ArmScore], arm: str) -> Record | None:
    """The record of one arm; None where it answered each item once, or no item has all of its samples judged."""
    of_item: dict[str, list[ArmScore]] = {}
    for score in scores:
        if score.arm == arm:
            of_item.setdefault(score.item, []).append(score)
    k = max((len(given) for given in of_item.values()), default=0)
    whole = [given for given in of_item.values() if len(given) == k and all(score.value is not None for score in given)]
    if k < 2 or not whole:
        return None
    marks = [[(score.value or 0.0) >= 1 for score in given] for given in whole]
    answers = [[score.answer for score in given] for given in whole]
    named = any(given[0].cluster is not None for given in whole)
    clusters = [given[0].cluster if given[0].cluster is not None else ("item", given[0].item) for given in whole] if named else None

    def rate(values: list[float]) -> Record:
        interval = mean_interval(values, clusters)
        return {"rate": sum(values) / len(values), "low": interval.low, "high": interval.high}

    return {
        "arm": arm,
        "k": k,
        "items": len(whole),
        "left_out": len(of_item) - len(whole),
        "any": rate([pass_at_k(k, sum(right), k) for right in marks]),
        "all": rate([pass_hat_k(k, sum(right), k) for right in marks]),
        "majority": rate([maj_at_k(said, right, k) for said, right in zip(answers, marks, strict=True)]),
        "distinct": sum(distinct_answers(said) for said in answers) / len(answers),
        "distinct_2": sum(distinct_n([score.text for score in given]) for given in whole) / len(whole),
    }
