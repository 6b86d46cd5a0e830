"""Whether contestants trained alike: the loss of every step of every round, ours against each peer's.

In fp32 equal means 1e-3 nats; where a contestant rounds to bf16, 2 % of the loss. Beyond it there is no result, only an error:
a speed-up that changes the maths is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sapwood.errors import SapwoodError

EXACT_NATS, ROUNDED_SHARE = 1e-3, 0.02

Losses = Mapping[str, Sequence[Sequence[float]]]
"""Of each contestant, by round and step."""


def compare_losses(losses: Losses, ours: str, exact: set[str]) -> dict[str, Any]:
    """The largest differences to any peer. `exact` names the peers that compute in fp32, as we do.

    Raises `SapwoodError` where a contestant took other steps, or another loss than is called equal.
    """
    differences: list[tuple[float, float]] = []
    for name, rounds in losses.items():
        if name == ours:
            continue
        if [len(steps) for steps in rounds] != [len(steps) for steps in losses[ours]]:
            raise SapwoodError(f"{name} did not take the steps that {ours} took: there is no result. Please report it.")
        for mine, theirs in zip(losses[ours], rounds, strict=True):
            for step, (a, b) in enumerate(zip(mine, theirs, strict=True), 1):
                equal = abs(a - b) <= (EXACT_NATS if name in exact else ROUNDED_SHARE * abs(b))
                if not equal:  # so that nan, which compares false with everything, is no result either
                    allowed = f"{EXACT_NATS:g} nats" if name in exact else f"{ROUNDED_SHARE:.0%} of the loss"
                    advice = "" if name in exact else " Few trained tokens round apart: give more --rows, or --dtype fp32 to be sure."
                    raise SapwoodError(
                        f"The losses differ: in step {step}, {a:.6f} here and {b:.6f} with {name}; equal is {allowed}. Other work is no "
                        f"comparison, so there is no result.{advice} If it stays, please report it."
                    )
                differences.append((abs(a - b), abs(a - b) / abs(b)))
    return {
        "max_loss_difference": max((nats for nats, _ in differences), default=None),
        "max_relative_loss_difference": max((share for _, share in differences), default=None),
    }
