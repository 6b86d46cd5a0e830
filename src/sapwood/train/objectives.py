"""Objectives: pure functions from log-probabilities to sums. Nothing is divided here; the step divides once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sapwood.forest import Forest


def supervised(logprob_N: Tensor, forest: Forest) -> Tensor:
    """Σ over uses of -weight · log p, in nats: the negative log-likelihood of all rows of the forest.

    Linear in the log-probability, so that the weights of all uses of a target are folded into it.
    """
    weight_N = np.bincount(forest.target_E, weights=forest.weight_E, minlength=len(forest.token_N))
    return -(logprob_N * torch.from_numpy(weight_N).to(logprob_N, non_blocking=True)).sum()
