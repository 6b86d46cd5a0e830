"""What a training leaves in TRL's shape: `TrainOutput`, and a state with the history of losses.

In: the records of a run's metrics. Out: plain values. Nothing here is computed anew; a line of the history is the mean over the
steps since the last one, as TRL's is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TrainOutput(NamedTuple):
    """What `train()` returns."""

    global_step: int
    training_loss: float
    """Mean over all steps, in nats a trained token."""
    metrics: dict[str, float]


@dataclass
class TrainerState:
    """Where a training stands."""

    global_step: int = 0
    max_steps: int = 0
    num_train_epochs: float = 0.0
    epoch: float = 0.0
    best_metric: float | None = None
    """The lowest held-out loss so far."""
    log_history: list[dict[str, float]] = field(default_factory=list)


def history(records: Iterable[Mapping[str, Any]], *, every: int, first: bool, steps: int, rows_a_step: float) -> list[dict[str, float]]:
    """Lines of a log: of training every so many steps, and of every evaluation. `rows_a_step` is in epochs."""
    lines: list[dict[str, float]] = []
    since: list[float] = []
    for record in records:
        at = {"epoch": record["step"] * rows_a_step, "step": record["step"]}
        if record.get("kind") == "eval":
            lines.append({"eval_loss": record["loss"], **at})
        elif record.get("kind") == "train":
            since.append(record["loss"])
            if record["step"] % every == 0 or (first and record["step"] == 1) or (record["step"] == steps and every <= steps):
                mean = sum(since) / len(since)
                lines.append({"loss": mean, "grad_norm": record["grad_norm"], "learning_rate": record["lr"], **at})
                since = []
    return lines
