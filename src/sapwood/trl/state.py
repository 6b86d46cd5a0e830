"""What a training leaves in TRL's shape: `TrainOutput`, and a state with the history of losses.

In: the records of a run's metrics. Out: plain values. Nothing here is computed anew; a line of the history is the mean over the
steps since the last one, as TRL's is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
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


Shown = Mapping[str, str]
"""Fields of a record → what TRL calls them in its history."""


def history(
    records: Iterable[Mapping[str, Any]],
    *,
    every: int,
    first: bool,
    steps: int,
    rows_a_step: float,
    shown: Shown = MappingProxyType({}),
    evaluated: Shown = MappingProxyType({"loss": "eval_loss"}),
) -> list[dict[str, float]]:
    """Lines of a log: of training every so many steps, and of every evaluation. `rows_a_step` is in epochs.

    `shown` are further figures of training, each the mean since the last line; `evaluated` those of an evaluation.
    """
    lines: list[dict[str, float]] = []
    since: list[Mapping[str, Any]] = []
    for record in records:
        at = {"epoch": record["step"] * rows_a_step, "step": record["step"]}
        if record.get("kind") == "eval":
            lines.append({**_renamed(record, evaluated), **at})
        elif record.get("kind") == "train":
            since.append(record)
            if record["step"] % every == 0 or (first and record["step"] == 1) or (record["step"] == steps and every <= steps):
                each = [_renamed(one, {"loss": "loss", **shown}) for one in since]
                means = {name: sum(one[name] for one in each) / len(each) for name in each[-1]}
                lines.append({**means, "grad_norm": record["grad_norm"], "learning_rate": record["lr"], **at})
                since = []
    return lines


def _renamed(record: Mapping[str, Any], shown: Shown) -> dict[str, float]:
    """Figures under TRL's names; those of a group (`rewards` by their names) as `rewards/NAME/mean`."""
    found: dict[str, float] = {}
    for field_name, theirs in shown.items():
        value = record.get(field_name)
        if isinstance(value, Mapping):
            found |= {theirs.format(name): number for name, number in value.items()}
        elif value is not None:
            found[theirs] = value
    return found
