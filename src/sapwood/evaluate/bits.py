"""Bits per token: how surprised a model is by held-out answers, or by general text.

In: a `LogProber` and examples. Out: a mean with an interval over examples, and the paired change from one model to
another. Only sums for each example are kept.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sapwood.errors import DataError
from sapwood.records import Example, LogProber
from sapwood.stats import Interval, ratio_interval

STATEMENT = "Fewer bits per token say that a model expects such texts more; they do not prove that its answers are of more use."


@dataclass(frozen=True, slots=True)
class BitsPerToken:
    """Mean −log2 probability of a trained token, weighted as in training, with an interval over examples, or their clusters."""

    mean: float
    interval: Interval
    tokens: int
    """Completion tokens with a weight above 0."""
    bits_B: tuple[float, ...]
    """Sum of weight × bits for each example, for pairing."""
    weights_B: tuple[float, ...]
    clusters_B: tuple[Hashable, ...] | None = None
    """The cluster of each example; None where each is its own."""

    def to_dict(self) -> dict[str, Any]:
        """{mean, low, high, level, tokens, examples}"""
        return {
            "mean": self.mean,
            "low": self.interval.low,
            "high": self.interval.high,
            "level": self.interval.level,
            "tokens": self.tokens,
            "examples": len(self.bits_B),
        }


@dataclass(frozen=True, slots=True)
class BitsChange:
    """Bits per token before and after on the same examples; `mean` is after − before, so below 0 is better."""

    before: BitsPerToken
    after: BitsPerToken
    mean: float
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """{before, after, change: {mean, low, high}, statement}"""
        change = {"mean": self.mean, "low": self.interval.low, "high": self.interval.high}
        return {"before": self.before.to_dict(), "after": self.after.to_dict(), "change": change, "statement": STATEMENT}


def bits_per_token(
    prober: LogProber,
    examples: Sequence[Example],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    at_once: int = 64,
) -> BitsPerToken:
    """Measure `examples`, `at_once` of them together; what is kept is one sum an example. `clusters` names the one of each.

    Raises `DataError` for no examples, an example whose weights are all 0, or log-probabilities that are not finite.
    """
    bits_B: list[float] = []
    weights_B: list[float] = []
    tokens = 0
    for start in range(0, len(examples), at_once):
        batch = examples[start : start + at_once]
        answers = iter(prober.logprobs([row for example in batch for row in example.rows]))
        for example in batch:
            bits = 0.0
            for row in example.rows:
                logprobs_T = np.asarray(next(answers), dtype=np.float64)
                assert logprobs_T.shape == row.weights_T.shape, "one log-probability a completion token"
                counted = row.weights_T != 0
                bits -= float(logprobs_T[counted] @ row.weights_T[counted].astype(np.float64)) / math.log(2)
                tokens += int(counted.sum())
            if not math.isfinite(bits) or example.weight <= 0:
                found = "no token has a weight above 0" if example.weight <= 0 else "the model's log-probabilities are not finite"
                raise DataError(f"{example.where}: {found}, so its bits per token cannot be measured. Leave the row out and try again.")
            bits_B.append(bits)
            weights_B.append(example.weight)
    if not bits_B:
        raise DataError("Bits per token need at least one example.")
    mean, interval = ratio_interval(bits_B, weights_B, level, clusters)
    return BitsPerToken(mean, interval, tokens, tuple(bits_B), tuple(weights_B), None if clusters is None else tuple(clusters))


def bits_change(before: BitsPerToken, after: BitsPerToken) -> BitsChange:
    """The paired change on the same examples. Raises `DataError` if the two were measured on different ones."""
    if (before.weights_B, before.clusters_B) != (after.weights_B, after.clusters_B):
        raise DataError("Bits per token can only be compared on the same examples in the same order. Measure both again.")
    mean, interval = ratio_interval(np.subtract(after.bits_B, before.bits_B), before.weights_B, before.interval.level, before.clusters_B)
    return BitsChange(before, after, mean, interval)
