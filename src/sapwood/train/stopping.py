"""When a run ends before its last step, and which of its states is the result: both by the held-out losses alone.

In: the evaluations of a run so far. Out: the best of them, whether the run's patience is at an end, and the best state again.
All of it is a function of the recorded losses, so that a resumed run decides as an uninterrupted one does.
Left out on purpose: metrics other than the held-out loss, and a least improvement that would count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sapwood.model import LanguageModel
from sapwood.records import Example, facts_of
from sapwood.run import Run, step_records
from sapwood.train.checkpoint import checkpoint_at
from sapwood.train.optimizer import Optimizer
from sapwood.train.step import evaluate

PARTS = 32
"""Most parts of the held-out rows whose losses are recorded each: they tell how sure a change of the whole is."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The held-out loss before step `step` + 1, in nats a trained token."""

    step: int
    loss: float


def evaluated(model: LanguageModel, held_out: Sequence[Example], budget: int, step: int, run: Run) -> Evaluation:
    """Evaluate, and record it: the loss of all held-out rows and of each of up to 32 parts of neighbours."""
    sums = evaluate(model, held_out, budget)
    assert sums.losses_B is not None
    weight_B = facts_of(held_out).of("weight")
    places = np.array_split(np.arange(len(held_out)), min(PARTS, len(held_out)))
    parts = [float(sums.losses_B[part].sum() / weight_B[part].sum()) for part in places]
    run.append("metrics", {"kind": "eval", "step": step, "loss": sums.mean_loss, "parts": parts})
    return Evaluation(step, sums.mean_loss)


def evaluations_before(run: Path, step: int) -> list[Evaluation]:
    """What earlier sittings of a run measured before a step, each once."""
    records = [record for record in step_records(run / "metrics.jsonl") if record.get("kind") == "eval" and record["step"] < step]
    return [Evaluation(record["step"], math.nan if record["loss"] is None else record["loss"]) for record in records]


def best_of(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The one with the lowest loss, the first of equals."""
    return min(evaluations, key=_rank)


def is_over(evaluations: Sequence[Evaluation], patience: int) -> bool:
    """Whether each of the last `patience` evaluations was no lower than one before it; never with a patience of 0."""
    return patience > 0 and len(evaluations) - 1 - evaluations.index(best_of(evaluations)) >= patience


def take_best(
    run: Run,
    optimizer: Optimizer,
    evaluations: Sequence[Evaluation],
    planned: int,
    fingerprint: Mapping[str, str],
    say: Callable[[str], None],
) -> Evaluation:
    """Bring the state with the lowest held-out loss back into the model, record the choice, and say it.

    `planned` is the length of the run's schedule. A best state that does not stand any more (it was deleted, or another
    machine's rounding made another step the best) is passed over for the next, and that is said.
    """
    last = evaluations[-1]
    if last.step < planned:
        since = best_of(evaluations).step
        say(f"Ended at step {last.step} of {planned}: no held-out loss since step {since} was lower than that one's.")
    for chosen in sorted(evaluations, key=_rank):
        if chosen == last:
            break
        checkpoint = checkpoint_at(run.path, chosen.step, fingerprint)
        if checkpoint is not None:
            optimizer.restore(checkpoint.tensors)
            break
        say(f"Step {chosen.step} had a held-out loss of {chosen.loss:.3f}, but its checkpoint does not stand whole any more.")
    lowest = f"Step {chosen.step} of {last.step} had the lowest held-out loss, {chosen.loss:.3f}"
    say(
        f"{lowest}; the result is its state."
        if chosen == last
        else f"{lowest} against {last.loss:.3f} at the end; the result is its state."
    )
    run.append("metrics", {"kind": "chosen", "step": last.step, "chosen": chosen.step, "loss": chosen.loss, "last_loss": last.loss})
    return chosen


def _rank(evaluation: Evaluation) -> tuple[float, int]:
    """Lowest first; a loss that is not a number is the highest."""
    return (evaluation.loss if math.isfinite(evaluation.loss) else math.inf, evaluation.step)
