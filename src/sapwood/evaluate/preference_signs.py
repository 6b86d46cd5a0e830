"""What an experienced eye would see in a run of preference tuning: overfitting, both answers falling, nothing learned; with a remedy.

In: records of metrics.jsonl, steps and evaluations. Out: sentences, the gravest first. Steps are compared by windows, never singly.
Left out on purpose: stopping by itself. A person decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sapwood.evaluate.grpo_signs import WINDOW, Sign, means

FAR = 10.0
"""β times nats by which both answers of a pair have fallen where the model hardly writes either of them any more."""
KNOWN = 0.98


def preference_signs(records: Sequence[Mapping[str, Any]]) -> list[Sign]:
    """Findings on the steps so far; none before two windows of steps are there."""
    steps = [record for record in records if record.get("kind", "train") == "train"]
    evals = [record for record in records if record.get("kind") == "eval" and isinstance(record.get("loss"), int | float)]
    if len(steps) < 2 * WINDOW:
        return []
    first, last = means(steps[:WINDOW]), means(steps[-WINDOW:])
    found = (
        _overfitting(first, last, evals),
        _by_heart(last, evals),
        _displaced(last),
        _drift(last),
        _opposite(evals),
        _stuck(first, last),
    )
    return [sign for sign in found if sign is not None]


def _overfitting(first: Mapping[str, float], last: Mapping[str, float], evals: Sequence[Mapping[str, Any]]) -> Sign | None:
    """The held-out loss has risen by a tenth of what it had fallen, and by more than a fiftieth of itself, while that of training fell."""
    if len(evals) < 3:
        return None
    best = min(evals, key=lambda record: record["loss"])
    rise, fell = evals[-1]["loss"] - best["loss"], evals[0]["loss"] - best["loss"]
    if not (rise > max(0.1 * fell, 0.02 * best["loss"]) and last["loss"] < first["loss"]):
        return None
    return Sign(
        "overfitting",
        f"The held-out loss was lowest at step {best['step']} ({best['loss']:.3f}) and is {evals[-1]['loss']:.3f} now, while that of "
        "training falls.",
        "Fewer --epochs, a lower --lr, or a higher --beta; more, and more different, pairs help most.",
    )


def _by_heart(last: Mapping[str, float], evals: Sequence[Mapping[str, Any]]) -> Sign | None:
    if not evals or evals[-1]["step"] == 0 or not (last.get("accuracy", 0.0) > KNOWN and evals[-1].get("accuracy_low", 1.0) <= 0.5):
        return None
    return Sign(
        "by heart",
        f"{last['accuracy']:.0%} of the pairs in training are told apart, and {evals[-1]['accuracy']:.0%} of the held-out ones "
        f"[{evals[-1]['accuracy_low']:.0%}, {evals[-1]['accuracy_high']:.0%}]: they are known by heart, or too few are held out.",
        "Fewer --epochs, or more pairs; hold out more with --held-out to see which it is.",
    )


def _displaced(last: Mapping[str, float]) -> Sign | None:
    chosen, rejected = last.get("chosen", 0.0), last.get("rejected", 0.0)
    if not (chosen < -1.0 and rejected < chosen):
        return None
    far = " It hardly writes either of them any more." if chosen < -FAR else ""
    return Sign(
        "both fall",
        f"The chosen answers have become less likely too ({chosen:+.2f}, the rejected ones {rejected:+.2f}): what gains is neither of "
        f"them.{far}",
        "A higher --beta or a lower --lr keeps it closer; train on the chosen answers first (sapwood sft, then --start RUN).",
    )


def _drift(last: Mapping[str, float]) -> Sign | None:
    if not last.get("kl", 0.0) > 50.0:
        return None
    return Sign(
        "divergence",
        f"The policy is about {last['kl']:.0f} nats an answer away from where it began.",
        "Raise --beta, or lower --lr: far from its beginning a model unlearns what nobody voted on.",
    )


def _opposite(evals: Sequence[Mapping[str, Any]]) -> Sign | None:
    if not evals or evals[-1]["step"] == 0 or not evals[-1].get("accuracy_high", 1.0) < 0.5:
        return None
    return Sign(
        "the opposite",
        f"Only {evals[-1]['accuracy']:.0%} of the held-out pairs are preferred as people did, fewer than by chance.",
        "Look whether chosen and rejected were swapped in some of the files: `sapwood doctor` shows rows.",
    )


def _stuck(first: Mapping[str, float], last: Mapping[str, float]) -> Sign | None:
    if abs(last.get("margin", 1.0)) >= 0.02 or abs(last["loss"] - first["loss"]) >= 0.01 * abs(first["loss"]):
        return None
    return Sign(
        "stuck",
        f"Nothing moves: the margin is {last['margin']:+.3f} and the loss {last['loss']:.3f} ({first['loss']:.3f} at first).",
        "Raise --lr (3 to 10 times), or lower --beta.",
    )
