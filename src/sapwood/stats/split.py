"""Did units come to the arms as the plan says? A test that may be looked at after every unit.

In: the arm of each unit in the order in which they came, and the chances it had. Out: the evidence that the chances are not kept
("sample ratio mismatch"): units of one arm were lost, counted twice, or sent elsewhere, and no effect can be believed.

The multinomial with the planned chances θ against one with unknown chances, Dirichlet(c θ): Lindon and Malek (2022), "Anytime-valid
inference for multinomial count data", NeurIPS 35, eq. (7). Their Bayes factor is a nonnegative martingale where the plan is kept, so
it ever reaches 1/α with a chance of at most α. The mean over three concentrations c finds small faults and large ones. Where chances
change (a ramp) a new factor begins and is multiplied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from sapwood.errors import DataError
from sapwood.stats.rates import Floats

CONCENTRATIONS = (100.0, 1_000.0, 10_000.0)
"""How near the unknown chances lie to the planned ones: within about 5, 1.6 and 0.5 points at a half."""


def split_evidence(arms: ArrayLike, chances: ArrayLike) -> Floats:
    """Log evidence against the planned chances after each unit, shape N. `arms` are places 0..K−1, `chances` of shape (N, K) or (K,).

    A unit in an arm that it had no chance of is proof: infinite from there on. Raises `DataError` for shapes that do not fit.
    """
    arms_N = np.asarray(arms, dtype=np.int64)
    chances_NK = np.asarray(chances, dtype=np.float64)
    if chances_NK.ndim == 1:
        chances_NK = np.broadcast_to(chances_NK, (len(arms_N), len(chances_NK)))
    if arms_N.ndim != 1 or chances_NK.ndim != 2 or len(chances_NK) != len(arms_N):
        raise DataError(f"Arms and chances differ in shape: {arms_N.shape} and {chances_NK.shape}.")
    if len(arms_N) and not (arms_N.min() >= 0 and arms_N.max() < chances_NK.shape[1] and np.allclose(chances_NK.sum(axis=1), 1)):
        raise DataError("Arms are places among the chances, and the chances of a unit sum to 1.")
    changes = np.flatnonzero((chances_NK[1:] != chances_NK[:-1]).any(axis=1)) + 1
    log_N, before = np.zeros(len(arms_N)), 0.0
    for start, end in zip([0, *changes], [*changes, len(arms_N)], strict=True):
        if end > start:
            log_N[start:end] = before + _constant(arms_N[start:end], chances_NK[start])
            before = float(log_N[end - 1])
    return log_N


def _constant(arms_N: np.ndarray, theta_K: Floats) -> Floats:
    """The same for chances that stay."""
    counts_NK = (arms_N[:, None] == np.arange(len(theta_K))[None, :]).cumsum(axis=0)
    possible = theta_K > 0
    theta_P, counts_NP = theta_K[possible], counts_NK[:, possible].astype(np.float64)
    n_N = counts_NP.sum(axis=1)
    planned_N = counts_NP @ np.log(theta_P)
    logs = []
    for c in CONCENTRATIONS:
        rising = special.gammaln(counts_NP + c * theta_P) - special.gammaln(c * theta_P)
        logs.append(rising.sum(axis=1) - (special.gammaln(n_N + c) - special.gammaln(c)) - planned_N)
    log_N: Floats = special.logsumexp(np.stack(logs), axis=0) - np.log(len(CONCENTRATIONS))
    return np.where(counts_NK[:, ~possible].any(axis=1), np.inf, log_N)
