"""Who is stronger, from choices between two at a time, ties among them.

In: for each choice who was compared, who won or that it was a tie, its cluster, and what else may sway it (a difference of lengths, which
stood left). Out: `Strengths` with intervals. The model is Bradley and Terry's with Davidson's ties (1970, "On extending the
Bradley–Terry model to accommodate ties", eq. 2.5), in logs, with d the difference of strengths plus slopes times controls:

    first wins ∝ exp(d/2)      tie ∝ exp(τ)      second wins ∝ exp(−d/2)

An exponential family, so the log-likelihood is concave and Newton's way ends at its one top. Intervals use a covariance that is robust to
clusters. Left out on purpose: ties as half wins (they shrink gaps: a true gap of 1.0 with a quarter of ties becomes 0.6).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sapwood.errors import DataError
from sapwood.stats.rates import Interval, t_quantile

Floats = NDArray[np.float64]

STEPS = 100
CLOSE = 1e-10
METHOD = "Bradley–Terry–Davidson, robust over clusters"


@dataclass(frozen=True, slots=True)
class Strengths:
    """Strengths in log odds above the anchor's 0; of two of them the first beats the second e^d times as often as the reverse."""

    strength: Mapping[str, float]
    interval: Mapping[str, Interval]
    """Of the difference to the anchor, whose own is 0 wide."""
    slopes: Mapping[str, float] = field(default_factory=dict)
    """Of each control, for one unit of its difference."""
    slope_intervals: Mapping[str, Interval] = field(default_factory=dict)
    tie: float | None = None
    """τ: a tie is exp(τ) times as likely as a win of either where both are equally strong. None without ties."""
    choices: int = 0
    clusters: int = 0
    note: str = ""
    """Why there are no strengths, where there are none."""


def strengths_of(
    first: Sequence[str],
    second: Sequence[str],
    outcome: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    anchor: str,
    controls: Mapping[str, ArrayLike] | None = None,
    level: float = 0.95,
) -> Strengths:
    """Fit strengths to choices; `outcome` is 1 where `first` won, 0 where `second` did, 0.5 for a tie.

    `controls` holds differences, first minus second, one entry a choice. Raises `DataError` for choices of unequal lengths, another
    outcome, or an anchor that nobody was compared with.
    """
    outcome_N = np.asarray(outcome, dtype=np.float64)
    controls_K = {name: np.asarray(values, dtype=np.float64) for name, values in (controls or {}).items()}
    if not (len(first) == len(second) == len(outcome_N) == len(clusters)) or any(len(v) != len(first) for v in controls_K.values()):
        raise DataError(f"Choices need as many names, outcomes, clusters and controls; found {len(first)} names first.")
    if not bool(np.isin(outcome_N, (0, 0.5, 1)).all()):
        raise DataError("An outcome is 1, 0.5 (a tie) or 0.")
    names = sorted(set(first) | set(second))
    if anchor not in names:
        raise DataError(f"The anchor {anchor!r} was never compared. Name one of: {', '.join(names) or 'nobody'}.")
    groups = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    if reason := _unbounded(first, second, outcome_N, names):
        return Strengths({}, {}, choices=len(first), clusters=len(groups), note=reason)
    free = [name for name in names if name != anchor]
    columns = [np.array([float(a == name) - float(b == name) for a, b in zip(first, second, strict=True)]) for name in free]
    design_ND = np.stack([*columns, *controls_K.values()], axis=1)
    ties = bool((outcome_N == 0.5).any())
    parameters, gradient_NP, information_NPP = _fit(design_ND, outcome_N, ties)
    if parameters is None or len(groups) <= len(free) + 1:
        note = "too few independent choices" if parameters is not None else "a control splits the choices by itself"
        return Strengths({}, {}, choices=len(first), clusters=len(groups), note=note)
    error_P = _robust_errors(gradient_NP, information_NPP, np.array([groups[name] for name in clusters]))
    half_P = t_quantile(level, len(groups) - 1) * error_P

    def interval(place: int) -> Interval:
        return Interval(float(parameters[place] - half_P[place]), float(parameters[place] + half_P[place]), level, METHOD)

    strength, intervals = {anchor: 0.0}, {anchor: Interval(0.0, 0.0, level, METHOD)}
    for place, name in enumerate(free):
        strength[name], intervals[name] = float(parameters[place]), interval(place)
    slopes = {name: float(parameters[len(free) + place]) for place, name in enumerate(controls_K)}
    slope_intervals = {name: interval(len(free) + place) for place, name in enumerate(controls_K)}
    tie = float(parameters[-1]) if ties else None
    return Strengths(strength, intervals, slopes, slope_intervals, tie, len(first), len(groups))


def _fit(design_ND: Floats, outcome_N: Floats, ties: bool) -> tuple[Floats | None, Floats, Floats]:
    """(parameters, each choice's gradient, each choice's information) at the top; no parameters where there is no top within reason."""
    count, width = design_ND.shape
    size = width + ties
    parameters = np.zeros(size)
    won_N, tied_N = outcome_N - 0.5, (outcome_N == 0.5).astype(np.float64)
    gradient_NP, information_NPP = np.zeros((count, size)), np.zeros((count, size, size))
    for _ in range(STEPS):
        half_N = np.clip(design_ND @ parameters[:width] / 2, -300, 300)
        tie = np.exp(parameters[-1]) if ties else 0.0
        up, down = np.exp(half_N), np.exp(-half_N)
        total = up + down + tie
        first_N, second_N, tie_N = up / total, down / total, tie / total
        lean_N = (first_N - second_N) / 2
        gradient_NP[:, :width] = (won_N - lean_N)[:, None] * design_ND
        spread_N = (first_N + second_N) / 4 - lean_N**2
        information_NPP[:, :width, :width] = spread_N[:, None, None] * design_ND[:, :, None] * design_ND[:, None, :]
        if ties:
            gradient_NP[:, -1] = tied_N - tie_N
            information_NPP[:, -1, -1] = tie_N * (1 - tie_N)
            information_NPP[:, :width, -1] = information_NPP[:, -1, :width] = -(lean_N * tie_N)[:, None] * design_ND
        try:
            step = np.linalg.solve(information_NPP.sum(0), gradient_NP.sum(0))
        except np.linalg.LinAlgError:
            return None, gradient_NP, information_NPP
        parameters = parameters + step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))
        if float(np.abs(step).max()) < CLOSE:
            return parameters, gradient_NP, information_NPP
        if float(np.abs(parameters).max()) > 50:
            break
    return None, gradient_NP, information_NPP


def _robust_errors(gradient_NP: Floats, information_NPP: Floats, groups_N: NDArray[np.int64]) -> Floats:
    """Standard errors by leaving out one cluster at a time, a Newton step each (CR3 of Bell and McCaffrey 2002).

    The plain sandwich is too small with few clusters: at 70 of them its 95 % intervals cover 91 to 93 %.
    """
    number, size = int(groups_N.max()) + 1, gradient_NP.shape[1]
    gradient_CP, information_CPP = np.zeros((number, size)), np.zeros((number, size, size))
    np.add.at(gradient_CP, groups_N, gradient_NP)
    np.add.at(information_CPP, groups_N, information_NPP)
    rest_CPP = information_CPP.sum(0) - information_CPP
    try:
        shift_CP = np.linalg.solve(rest_CPP, gradient_CP[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:  # without one cluster a parameter hangs in the air
        return np.full(size, np.inf)
    return np.asarray(np.sqrt((number - 1) / number * (shift_CP**2).sum(0)))


def _unbounded(first: Sequence[str], second: Sequence[str], outcome_N: Floats, names: Sequence[str]) -> str:
    """Why strengths are not finite: somebody who is never beaten by (or never compared with) the others; empty where they are."""
    beaten_by: dict[str, set[str]] = {name: set() for name in names}
    for a, b, result in zip(first, second, outcome_N, strict=True):
        if result > 0:
            beaten_by[b].add(a)
        if result < 1:
            beaten_by[a].add(b)
    for start in names:
        seen, waiting = {start}, [start]
        while waiting:
            fresh = beaten_by[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        if len(seen) < len(names):
            return "some were never beaten by the others, so no strength is finite yet: more votes are needed"
    return ""
