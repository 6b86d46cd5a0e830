"""Scores of made-up arms, for tests of rules and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sapwood.evaluate import ArmScore


def arm(name: str, values: Sequence[float | None], clusters: Sequence[str] | None = None, **more: Any) -> list[ArmScore]:
    """One arm with these values on the items i0, i1, …"""
    given = {"answer": "a", "explanation": "", "text": "text", "ended": "stop", "tokens_in": 10, "tokens_out": 2, "seconds": 0.1, **more}
    return [ArmScore(name, f"i{n}", clusters[n] if clusters else None, value, **given) for n, value in enumerate(values)]


def right(count: int, n: int, start: int = 0) -> list[float | None]:
    """Right on `count` items from `start` on."""
    return [float(start <= k < start + count) for k in range(n)]
