"""Losses that differ are no result, whichever side they err to, and nan is not equal to anything."""

from __future__ import annotations

import math

import pytest
from bench.losses import EXACT_NATS, ROUNDED_SHARE, compare_losses
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import SapwoodError

LOSSES = st.lists(st.lists(st.floats(0.1, 10), min_size=2, max_size=3), min_size=1, max_size=3)


@given(LOSSES, st.booleans(), st.floats(-1.5, 1.5))
def test_the_bound_is_nats_in_fp32_and_a_share_in_bf16(rounds: list[list[float]], exact: bool, times: float) -> None:
    moved = [[loss + times * (EXACT_NATS if exact else ROUNDED_SHARE * loss) for loss in steps] for steps in rounds]
    losses = {"ours": moved, "peer": rounds}
    if abs(times) <= 0.999:
        found = compare_losses(losses, "ours", {"peer"} if exact else set())
        most = max(abs(a - b) for mine, theirs in zip(moved, rounds, strict=True) for a, b in zip(mine, theirs, strict=True))
        assert found["max_loss_difference"] == most
    elif abs(times) >= 1.001:
        with pytest.raises(SapwoodError, match="there is no result"):
            compare_losses(losses, "ours", {"peer"} if exact else set())


def test_nan_is_no_result() -> None:
    with pytest.raises(SapwoodError, match="step 2"):
        compare_losses({"ours": [[1.0, math.nan]], "peer": [[1.0, math.nan]]}, "ours", set())


def test_other_steps_are_no_result() -> None:
    with pytest.raises(SapwoodError, match="did not take the steps"):
        compare_losses({"ours": [[1.0, 2.0]], "peer": [[1.0]]}, "ours", set())


def test_without_a_peer_nothing_is_said() -> None:
    assert compare_losses({"ours": [[1.0]]}, "ours", set()) == {"max_loss_difference": None, "max_relative_loss_difference": None}
