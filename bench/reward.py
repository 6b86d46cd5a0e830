"""The reward that both sides of a comparison give an answer. Standard library only, for this file runs in every environment."""

from __future__ import annotations

from collections.abc import Sequence

KINDS = 97


def reward_of(ids: Sequence[int]) -> float:
    """A number from 0 to 1 that depends on every token, so that the answers of a group differ."""
    return sum(ids) % KINDS / KINDS
