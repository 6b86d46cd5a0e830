"""Losses that differ are no result, whichever side they err to, and nan is not equal to anything."""

from __future__ import annotations

import math

import pytest
from bench.losses import EXACT_NATS, EXACT_NORM, ROUNDED_NORM, ROUNDED_SHARE, compare_losses, compare_norms, compare_rounded
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


def test_a_share_of_a_loss_near_0_is_one_of_the_least_size() -> None:
    losses = {"ours": [[1e-4]], "peer": [[-1e-4]]}
    with pytest.raises(SapwoodError, match="there is no result"):
        compare_losses(losses, "ours", set())
    assert compare_losses(losses, "ours", set(), 1.0)["max_relative_loss_difference"] == pytest.approx(2e-4)
    with pytest.raises(SapwoodError, match="there is no result"):
        compare_losses({"ours": [[0.0]], "peer": [[1.1 * ROUNDED_SHARE]]}, "ours", set(), 1.0)


@pytest.mark.parametrize(("exact", "bound"), [({"peer"}, EXACT_NORM), (set(), ROUNDED_NORM)])
@pytest.mark.parametrize("side", [1, -1])
def test_gradients_that_differ_are_no_result(exact: set[str], bound: float, side: int) -> None:
    norms = {"peer": [[2.0, 4.0], [2.0, 4.0]], "ours": [[2.0, 4.0], [2.0, 4.0 * (1 + side * 0.9 * bound)]]}
    assert compare_norms(norms, "ours", exact) == pytest.approx(0.9 * bound)
    norms["ours"][1][1] = 4.0 * (1 + side * 1.1 * bound)
    with pytest.raises(SapwoodError, match="in step 2 their norm"):
        compare_norms(norms, "ours", exact)
    norms["ours"][1][1] = math.nan
    with pytest.raises(SapwoodError, match="there is no result"):
        compare_norms(norms, "ours", exact)


def test_without_a_peer_no_norm_differs() -> None:
    assert compare_norms({"ours": [[1.0]]}, "ours", set()) is None


def test_after_an_agreement_in_fp32_ours_is_judged_by_it_and_a_peer_by_nobody() -> None:
    losses = {"ours": [[1.0, 0.985], [1.0, 0.985]], "peer": [[1.0, 1.5], [1.0, 1.5]]}
    found = compare_rounded(losses, "ours", [1.0, 1.0, 7.0], set())
    assert found["max_relative_loss_difference_to_fp32"] == pytest.approx(0.015)
    assert found["max_loss_difference"] == pytest.approx(0.515)
    with pytest.raises(SapwoodError, match="ours in fp32"):
        compare_rounded({**losses, "ours": [[1.0, 0.985], [1.0, 0.97]]}, "ours", [1.0, 1.0], set())
    with pytest.raises(SapwoodError, match="peer"):
        compare_rounded({**losses, "peer": [[1.0, math.nan], [1.0, 1.5]]}, "ours", [1.0, 1.0], set())
    with pytest.raises(SapwoodError, match="peer"):  # in fp32 nothing is only told
        compare_rounded(losses, "ours", [1.0, 1.0], {"peer"})
