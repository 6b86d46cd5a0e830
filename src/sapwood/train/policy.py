"""The objective of GRPO and its kin, as sums over the uses of a forest.

In: log-probabilities of the sampled tokens now, at sampling time and of the reference, and each row's advantage. Out: sums, and counts
for people. Nothing is divided here but what a paper divides a single row by; the step divides once, by `total`.
Left out on purpose: losses without a clip on the ratio, and adaptive coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sapwood.errors import ConfigError
from sapwood.train.advantages import Scaling
from sapwood.train.preferences import row_sums

PolicyLoss = Literal["grpo", "dr_grpo", "dapo", "gspo"]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The objective of reinforcement learning."""

    loss: PolicyLoss = "dapo"
    """How tokens count: `grpo` each answer alike, `dapo` each token alike, `dr_grpo` by the longest answer, `gspo` answers whole."""
    scaling: Scaling = "group"
    """What advantages are divided by: the standard deviation of the `group`, that of the whole `batch`, or `none`."""
    clip_low: float = 0.2
    """How far below 1 a ratio of probabilities still counts."""
    clip_high: float = 0.2
    """How far above 1: 0.28 is DAPO's clip-higher (arXiv:2503.14476 §3.1); gspo takes far smaller ones (3e-4 and 4e-4)."""
    kl: float = 0.0
    """Weight of the divergence from the model as it was before step 1; 0 leaves it free and costs nothing. 0.04 is DeepSeekMath's."""
    entropy: float = 0.0
    """Weight of a bonus for entropy, against a policy that narrows too early; 0.001 to 0.01."""
    mask_overlong: bool = False
    """Leave answers that were cut at the limit out of the loss, instead of taking them for wrong (arXiv:2503.14476 §3.4)."""
    correction: Literal["none", "token", "sequence"] = "none"
    """Weight by how the sampler's probabilities differ from training's, for a remote sampler: each token's, or the whole answer's."""
    correction_cap: float = 3.0
    """Largest weight of a correction: a token's is cut there, a whole answer beyond it is left out."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low <= 1:
            raise ConfigError(f"policy.clip_low is {self.clip_low}; give a number above 0 and at most 1.")
        for name in ("clip_high", "correction_cap"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"policy.{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("kl", "entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"policy.{name} is {getattr(self, name)}; give 0 or a number above it.")


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the objective knows of the uses of one forest beside their log-probabilities now. E uses, R rows."""

    row_E: Tensor
    advantage_R: Tensor
    mask_E: Tensor
    """1 where a token counts, else 0."""
    old_E: Tensor | None = None
    """Log-probabilities by the policy that sampled, computed as training computes them; None where it is the policy itself."""
    reference_E: Tensor | None = None
    correction_E: Tensor | None = None
    """Weights by which the sampler's own probabilities are set right, of `correction`."""


def total(config: PolicyConfig, *, rows: int, tokens: float, longest: int) -> float:
    """What a step divides its sum by: rows of the step, tokens that count, and the longest answer that is allowed."""
    match config.loss:
        case "grpo" | "gspo":
            return float(rows)
        case "dr_grpo":
            return float(rows * longest)
        case "dapo":
            return max(tokens, 1.0)


def policy(logprob_E: Tensor, sampled: Sampled, config: PolicyConfig) -> tuple[Tensor, Mapping[str, float]]:
    """Sum of the loss over one forest; divided by `total` of the whole step it is the mean that the papers write.

    With the ratio r = π(o_t) / π_old(o_t) and the advantage A, each token gives -min(r A, clip(r, 1 - low, 1 + high) A) + β KL:

    `grpo`     mean over an answer's tokens, then over answers: Shao et al., arXiv:2402.03300, eq. 3
    `dapo`     mean over all tokens of the step: Yu et al., arXiv:2503.14476, eq. 8
    `dr_grpo`  sum over tokens, by the longest allowed answer: Liu et al., arXiv:2503.20783, §3.2 and its listing
    `gspo`     r of a whole answer is the geometric mean of its tokens': Zheng et al., arXiv:2507.18071, eq. 5 to 7

    The KL is k3, r' - log r' - 1 with r' = π_ref / π: Schulman 2020, arXiv:2402.03300 eq. 4. The entropy's gradient is that of
    its estimate by the sampled tokens, -log π(o_t) as a further advantage of each (without bias while they are the policy's own).
    """
    row_E, mask_E, rows = sampled.row_E, sampled.mask_E, len(sampled.advantage_R)
    length_R = row_sums(mask_E, row_E, rows).clamp(min=1.0)
    old_E = logprob_E.detach() if sampled.old_E is None else sampled.old_E
    log_ratio_E = logprob_E - old_E
    if config.loss == "gspo":
        log_ratio_E = (row_sums(log_ratio_E * mask_E, row_E, rows) / length_R)[row_E]
    ratio_E, advantage_E = log_ratio_E.exp(), sampled.advantage_R[row_E]
    clipped_E = ratio_E.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss_E = -torch.minimum(ratio_E * advantage_E, clipped_E * advantage_E)
    if sampled.correction_E is not None:
        loss_E = loss_E * sampled.correction_E
    kl = loss_E.new_zeros(())
    if sampled.reference_E is not None:
        apart_E = sampled.reference_E - logprob_E
        kl_E = apart_E.exp() - apart_E - 1
        loss_E = loss_E + config.kl * kl_E
        kl = (kl_E.detach() * mask_E).sum()
    if config.entropy:
        loss_E = loss_E + config.entropy * logprob_E.detach() * (logprob_E - old_E).exp()
    weight_E = mask_E / length_R[row_E] if config.loss in ("grpo", "gspo") else mask_E
    low_E = (ratio_E < 1 - config.clip_low) & (advantage_E < 0)
    high_E = (ratio_E > 1 + config.clip_high) & (advantage_E > 0)
    counted = {
        "tokens": mask_E.sum(),
        "kl": kl,
        "entropy": -(logprob_E.detach() * mask_E).sum(),
        "clipped_low": (low_E * mask_E).sum(),
        "clipped_high": (high_E * mask_E).sum(),
    }
    values = torch.stack([*counted.values()]).tolist()  # one look: each is a wait where a GPU computes
    return (loss_E * weight_E).sum(), dict(zip(counted, values, strict=True))


def corrections(old_E: Tensor, sampler_E: Tensor, row_E: Tensor, rows: int, config: PolicyConfig) -> Tensor | None:
    """Weights (E,) for tokens that another program sampled: π_old as training computes it over what the sampler said.

    `token` cuts each at the cap (truncated importance sampling, Yao et al. 2025, fengyao.notion.site/off-policy-rl); `sequence`
    leaves an answer out whose whole ratio is above the cap or below its inverse's reach, as masked importance sampling does.
    """
    if config.correction == "none":
        return None
    apart_E = old_E - sampler_E
    if config.correction == "token":
        return apart_E.exp().clamp(max=config.correction_cap)
    ratio_R = row_sums(apart_E, row_E, rows).exp()
    return torch.where(ratio_R > config.correction_cap, 0.0, ratio_R)[row_E]
