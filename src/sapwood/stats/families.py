"""Many comparisons at once: p-values in, adjusted ones out, each to be held against the level as if it were alone.

Holm's keep the chance of even one false claim below the level (a family of guards); Benjamini and Hochberg's keep the expected share
of false ones among all claims below it (slices, of which one wants to know where to look). Left out on purpose: Bonferroni, which
Holm's never loses to.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapwood.errors import DataError
from sapwood.stats.rates import Floats


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: the largest of (m − i + 1) · p(i) so far. Source: Holm (1979).

    Raises `DataError` for values outside of 0..1.
    """
    values, order = _ordered(p_values)
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return _in_place(stepped, order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: the smallest of m / i · p(i) from there on. Source: Benjamini and Hochberg (1995).

    Raises `DataError` for values outside of 0..1.
    """
    values, order = _ordered(p_values)
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    return _in_place(np.minimum.accumulate(scaled[::-1])[::-1], order)


def _ordered(p_values: Sequence[float]) -> tuple[Floats, np.ndarray]:
    values = np.asarray(p_values, dtype=np.float64)
    if not bool(np.all((values >= 0) & (values <= 1))):
        raise DataError("p-values lie from 0 to 1; leave out the comparisons that could not be made, and say how many.")
    return values, np.argsort(values, kind="stable")


def _in_place(adjusted: Floats, order: np.ndarray) -> list[float]:
    found = np.empty(len(order))
    found[order] = np.minimum(adjusted, 1.0)
    return [float(value) for value in found]
