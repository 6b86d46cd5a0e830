"""Objectives on preferences: pairs (DPO and its kin) and single votes (KTO), as sums over the uses of a forest.

In: the log-probability of each use, and what the reference model gave each row. Out: sums, and counts for people. The rows of a
pair stand one behind the other, the chosen one first. Nothing is divided here; the step divides once.
Left out on purpose: other divergences than the reverse KL, and losses that no paper here is named for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PreferenceLoss = Literal["sigmoid", "robust", "ipo"]
Counts = Mapping[str, float]

TIE = 1e-3
"""Nats within which two sums of log-probabilities are the same but for rounding: what no step has moved yet is no preference."""


def row_sums(value_E: Tensor, row_E: Tensor, num_rows: int) -> Tensor:
    """Σ of the values of each row's uses: (R,)."""
    return value_E.new_zeros(num_rows).index_add(0, row_E, value_E)


def preference(
    chosen_B: Tensor, rejected_B: Tensor, lengths_2B: Tensor, *, kind: PreferenceLoss, beta: float, smoothing: float
) -> tuple[Tensor, Counts]:
    """Sum over B pairs of the loss on log(policy / reference) of the chosen and the rejected answer, in nats.

    With Δ = chosen - rejected:

    `sigmoid`  -(1 - ε) log σ(β Δ) - ε log σ(-β Δ): DPO, Rafailov et al., arXiv:2305.18290, eq. 7 (ε = 0); with ε it is the
               conservative DPO of its appendix: the share of labels that are believed to be wrong
    `robust`   (-(1 - ε) log σ(β Δ) + ε log σ(-β Δ)) / (1 - 2ε): unbiased under that noise, arXiv:2403.00409, eq. 10
    `ipo`      (Δ' - 1 / 2β)²: Azar et al., arXiv:2310.12036, eq. 17, where Δ' holds each answer's mean over its `lengths_2B` tokens
               (two rows: chosen, rejected), as the authors' own experiments do
    """
    delta_B = chosen_B - rejected_B
    match kind:
        case "sigmoid":
            loss_B = -(1 - smoothing) * logsigmoid(beta * delta_B) - smoothing * logsigmoid(-beta * delta_B)
        case "robust":
            loss_B = (-(1 - smoothing) * logsigmoid(beta * delta_B) + smoothing * logsigmoid(-beta * delta_B)) / (1 - 2 * smoothing)
        case "ipo":
            loss_B = (chosen_B / lengths_2B[0] - rejected_B / lengths_2B[1] - 1 / (2 * beta)) ** 2
    right, margin, chosen, rejected = _read(*_right(delta_B), delta_B.sum(), chosen_B.sum(), rejected_B.sum())
    return loss_B.sum(), {"right": right, "margin": beta * margin, "chosen": beta * chosen, "rejected": beta * rejected}


def vote(ratio_B: Tensor, good_B: Tensor, kl: float, *, beta: float, good_weight: float, bad_weight: float) -> tuple[Tensor, Counts]:
    """Sum over B answers, each with one vote, of KTO's loss: Ethayarajh et al., arXiv:2402.01306, eq. 7 and 8.

    `ratio_B` is log(policy / reference) of each answer in nats, `good_B` its vote, and `kl` the step's estimate of
    KL(policy ‖ reference), at least 0 and without a gradient: λ (1 - σ(β (ratio - kl))) for good ones, λ (1 - σ(β (kl - ratio))) else.
    """
    sign_B = torch.where(good_B, 1.0, -1.0).to(ratio_B)
    weight_B = torch.where(good_B, good_weight, bad_weight).to(ratio_B)
    loss_B = weight_B * (1 - torch.sigmoid(beta * sign_B * (ratio_B - kl)))
    reward_B = beta * ratio_B.detach()
    sums = [torch.where(kind_B, reward_B, 0.0).sum() for kind_B in (good_B, ~good_B)]
    right, good, good_reward, bad_reward = _read(*_right(sign_B * (ratio_B - kl)), good_B.sum(), *sums)
    return loss_B.sum(), {"right": right, "good": good, "good_reward": good_reward, "bad_reward": bad_reward}


def _right(difference_B: Tensor) -> tuple[Tensor, Tensor]:
    """How many lie above 0, and how many are 0 but for rounding."""
    return (difference_B > TIE).sum(), (difference_B.abs() <= TIE).sum()


def _read(above: Tensor, tied: Tensor, *others: Tensor) -> list[float]:
    """How many are right, where a tie is half right, and the other numbers: all looked at once, for a GPU makes each look a wait."""
    found = torch.stack([number.detach().to(torch.promote_types(others[-1].dtype, torch.float32)) for number in (above, tied, *others)])
    above_0, ties, *rest = found.tolist()
    return [above_0 + 0.5 * ties, *rest]
