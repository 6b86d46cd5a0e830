"""Rewards of groups in, advantages out: how much better an answer was than its group.

An answer that nothing could judge has a reward of NaN: it is left out of every mean, and its advantage is 0, so it moves nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scaling = Literal["group", "batch", "none"]

LEAST = 1e-4
"""Added to a standard deviation, so that rewards that hardly differ are not blown up."""


def advantages(rewards_PG: Floats, scaling: Scaling) -> Floats:
    """(P, G): reward less its group's mean; divided by the group's standard deviation, by that of all, or by nothing.

    `group` is GRPO, Shao et al., arXiv:2402.03300, §4.1.2; `none` is Dr. GRPO, Liu et al., arXiv:2503.20783, §3.2; `batch` is what
    arXiv:2508.08221 finds most robust. Standard deviations are those of samples (n - 1), plus 1e-4.
    """
    judged_PG = np.isfinite(rewards_PG)
    centred_PG = np.where(judged_PG, rewards_PG - _means(rewards_PG, judged_PG)[:, None], 0.0)
    match scaling:
        case "none":
            return centred_PG
        case "group":
            scale_P1 = spreads(rewards_PG)[:, None] + LEAST
        case "batch":
            scale_P1 = spreads(rewards_PG.reshape(1, -1))[:, None] + LEAST
    scaled_PG: Floats = centred_PG / scale_P1
    return scaled_PG


def spreads(rewards_PG: Floats) -> Floats:
    """(P,): the standard deviation (n - 1) of each group's judged rewards; 0 where fewer than two were judged."""
    judged_PG = np.isfinite(rewards_PG)
    centred_PG = np.where(judged_PG, rewards_PG - _means(rewards_PG, judged_PG)[:, None], 0.0)
    spread: Floats = np.sqrt((centred_PG**2).sum(1) / np.maximum(judged_PG.sum(1) - 1, 1))
    return spread


def dead(rewards_PG: Floats) -> NDArray[np.bool_]:
    """(P,): groups whose answers were all rewarded alike: nothing is learned from them."""
    low_P = np.where(np.isfinite(rewards_PG), rewards_PG, np.inf).min(1)
    high_P = np.where(np.isfinite(rewards_PG), rewards_PG, -np.inf).max(1)
    found: NDArray[np.bool_] = ~(high_P - low_P > 1e-9)  # also where nothing was judged
    return found


def _means(rewards_PG: Floats, judged_PG: NDArray[np.bool_]) -> Floats:
    sums: Floats = np.where(judged_PG, rewards_PG, 0.0).sum(1) / np.maximum(judged_PG.sum(1), 1)
    return sums
