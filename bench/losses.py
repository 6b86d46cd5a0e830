"""Whether contestants trained alike: the loss of every step of every round, ours against each peer's, and the gradient's norm.

In fp32 equal means 1e-3 nats, and a thousandth of the norm; where a contestant rounds to bf16, 2 % of the loss and 10 % of the norm.
Beyond it there is no result, only an error: a speed-up that changes the maths is none.

Where rounding alone moves the loss of a step by more than 2 % (`pairs`), all take the steps in fp32 first, and must agree there; in bf16
our losses are then held to our own in fp32, and what a peer rounds is its own affair: its difference is reported, not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from sapwood.errors import SapwoodError

EXACT_NATS, ROUNDED_SHARE = 1e-3, 0.02
EXACT_NORM, ROUNDED_NORM = 1e-3, 0.1

Losses = Mapping[str, Sequence[Sequence[float]]]
"""Of each contestant, by round and step."""


def compare_losses(losses: Losses, ours: str, exact: set[str], least: float = 0.0, rounded: float = ROUNDED_SHARE) -> dict[str, Any]:
    """The largest differences to any peer. `exact` names the peers that compute in fp32, as we do; others may differ by
    the share `rounded`.

    A share is one of the loss, or of `least` where that is larger: a policy's loss is a sum of advantages, near 0 by construction.
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
                equal = abs(a - b) <= (EXACT_NATS if name in exact else rounded * max(abs(b), least))
                if not equal:  # so that nan, which compares false with everything, is no result either
                    allowed = f"{EXACT_NATS:g} nats" if name in exact else f"{rounded:.0%} of the loss"
                    advice = "" if name in exact else " Few trained tokens round apart: give more --rows, or --dtype fp32 to be sure."
                    raise SapwoodError(
                        f"The losses differ: in step {step}, {a:.6f} here and {b:.6f} with {name}; equal is {allowed}. Other work is no "
                        f"comparison, so there is no result.{advice} If it stays, please report it."
                    )
                differences.append((abs(a - b), abs(a - b) / max(abs(b), least)))
    return {
        "max_loss_difference": max((nats for nats, _ in differences), default=None),
        "max_relative_loss_difference": max((share for _, share in differences), default=None),
    }


def compare_rounded(losses: Losses, ours: str, true: Sequence[float], exact: set[str], least: float = 0.0) -> dict[str, Any]:
    """What `compare_losses` finds, where `true` are our losses of the same steps in fp32, which a peer has agreed with before.

    Raises `SapwoodError` where ours differ from those by more than 2 %.
    """
    name = f"{ours} in fp32"
    own = compare_losses({ours: losses[ours], name: [true[: len(steps)] for steps in losses[ours]]}, ours, set(), least)
    told = compare_losses(losses, ours, exact, least, rounded=inf)
    return {**told, "max_relative_loss_difference_to_fp32": own["max_relative_loss_difference"]}


def compare_norms(norms: Losses, ours: str, exact: set[str], rounded: float = ROUNDED_NORM) -> float | None:
    """The largest difference of a gradient's norm to any peer's, as a share. Raises `SapwoodError` beyond what is called equal."""
    most = None
    for name, rounds in norms.items():
        for mine, theirs in zip(norms[ours], rounds, strict=True) if name != ours else ():
            for step, (a, b) in enumerate(zip(mine, theirs, strict=True), 1):
                apart, allowed = abs(a - b) / abs(b), EXACT_NORM if name in exact else rounded
                if not apart <= allowed:
                    raise SapwoodError(
                        f"The gradients differ: in step {step} their norm is {a:.6f} here and {b:.6f} with {name}; equal is {allowed:.1%} "
                        "of it. Other work is no comparison, so there is no result. Give --dtype fp32 to be sure; if it stays, please "
                        "report it."
                    )
                most = max(apart, most or 0.0)
    return most
