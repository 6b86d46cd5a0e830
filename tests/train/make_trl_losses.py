"""Writes trl_losses.json: the losses and gradients of TRL 1.16.0's own `_compute_loss` on the cases of `policy_cases`.

    PYTHONPATH=src:tests python tests/train/make_trl_losses.py     in an environment that has TRL with its dependencies

TRL's trainers are not set up: their loss is called on a stand-in that holds the attributes it reads, with a model whose
log-probabilities are transformers' own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

import trl
from sapwood.records import Row
from train.policy_cases import (
    CUT,
    FILE,
    GOOD,
    GROUP,
    LONGEST,
    POLICIES,
    PREFERENCES,
    REFERENCE_B2,
    REWARDS_PG,
    groups,
    module,
    noise,
    pairs,
    probe,
)


def logprobs(model: Any, rows: list[Row]) -> list[torch.Tensor]:
    found = []
    for row in rows:
        logits = model(input_ids=torch.from_numpy(row.inputs_T)[None], use_cache=False).logits[0, len(row.prompt_T) - 1 :]
        found.append(logits.log_softmax(-1)[torch.arange(len(row.completion_T)), torch.from_numpy(row.completion_T)])
    return found


def padded(values: list[Any]) -> torch.Tensor:
    return pad_sequence(
        [torch.as_tensor(np.asarray(value)).float() if not isinstance(value, torch.Tensor) else value for value in values], batch_first=True
    )


def accelerator() -> Any:
    return SimpleNamespace(
        num_processes=1,
        device="cpu",
        sync_gradients=True,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        unwrap_model=lambda x: x,
    )


def policy(theirs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    model, examples = module("sdpa"), groups()
    rows = [row for example in examples for row in example.rows]
    with torch.no_grad():
        now = logprobs(model, rows)
    old = [value + torch.from_numpy(add).float() for value, add in zip(now, noise(examples, 1), strict=True)]
    reference = [value + torch.from_numpy(add).float() for value, add in zip(now, noise(examples, 2), strict=True)]
    sampler = [value + torch.from_numpy(add).float() for value, add in zip(old, noise(examples, 3), strict=True)]
    mask = padded([torch.ones(len(row.completion_T)) for row in rows])
    if theirs.get("overlong"):
        mask[list(CUT)] = 0.0
    rewards = torch.from_numpy(REWARDS_PG).float()
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    inputs = {
        "prompt_ids": torch.zeros(len(rows), 1),
        "prompt_mask": torch.ones(len(rows), 1),
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": padded(old),
        "ref_per_token_logps": padded(reference),
        "num_items_in_batch": mask.sum(),
    }
    correction = theirs.get("correction")
    if correction:
        apart = (padded(old) - padded(sampler)) * mask
        ratio = (apart.sum(-1, keepdim=True) if correction.startswith("sequence") else apart).exp()
        cap = theirs["cap"]
        inputs["importance_sampling_ratio"] = ratio.masked_fill(ratio > cap, 0.0) if correction.endswith("mask") else ratio.clamp(max=cap)
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (padded(logprobs(model, rows)), torch.zeros_like(mask), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=theirs.get("importance_sampling_level", "token"),
        beta=theirs.get("beta", 0.0),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        loss_type=theirs.get("loss_type", "grpo"),
        epsilon_low=theirs.get("epsilon_low", 0.2),
        epsilon_high=theirs.get("epsilon_high", 0.2),
        use_vllm=bool(correction),
        vllm_importance_sampling_correction=bool(correction),
        model=model.train(),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        accelerator=accelerator(),
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        num_generations=GROUP,
    )
    return GRPOTrainer._compute_loss(stub, model, inputs), model


class FusedHead:
    """What TRL's patched forward returns, from transformers' own logits."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **_: Any) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        kept = labels[:, 1:] != -100
        logp = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * kept
        nothing = torch.zeros_like(logp)
        return SimpleNamespace(
            log_probs=logp, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), log_sum_sq_probs=nothing, logits=logits
        )


def batch_of(rows: list[Row]) -> dict[str, torch.Tensor]:
    ids = pad_sequence([torch.from_numpy(np.concatenate([row.prompt_T, row.completion_T])) for row in rows], batch_first=True)
    whole = pad_sequence([torch.ones(row.length, dtype=torch.long) for row in rows], batch_first=True)
    mask = pad_sequence(
        [torch.cat([torch.zeros(len(row.prompt_T)), torch.ones(len(row.completion_T))]).long() for row in rows], batch_first=True
    )
    return {"input_ids": ids, "attention_mask": whole, "completion_mask": mask}


def preference(name: str, theirs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    model, examples = module("sdpa"), pairs()
    add = torch.from_numpy(REFERENCE_B2).float()
    metrics = defaultdict(lambda: defaultdict(list))
    if name == "kto":
        rows, others = [one.rows[0] for one in examples], [one.rows[1] for one in examples]
        with torch.no_grad():
            now, then = ([float(value.sum()) for value in logprobs(model, some)] for some in (rows, others))
        wrong = batch_of(others)
        inputs = {
            **batch_of(rows),
            "label": torch.tensor(GOOD),
            "ref_logps": torch.tensor(now) + add[:, 0],
            "ref_KL_logps": torch.tensor(then) + add[:, 1],
            "KL_input_ids": wrong["input_ids"],
            "KL_attention_mask": wrong["attention_mask"],
            "KL_completion_mask": wrong["completion_mask"],
        }
        stub = SimpleNamespace(
            model=model.train(),
            accelerator=accelerator(),
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            calculate_KL=True,
            loss_type="kto",
            beta=0.1,
            desirable_weight=theirs.get("desirable_weight", 1.0),
            undesirable_weight=1.0,
            _metrics=metrics,
            _total_train_tokens=0,
            _tp_size=1,
        )
        stub._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(stub, model, batch)
        return KTOTrainer._compute_loss(stub, FusedHead(model), inputs, False), model
    rows = [one.rows[0] for one in examples] + [one.rows[1] for one in examples]
    with torch.no_grad():
        now = torch.stack([value.sum() for value in logprobs(model, rows)])
    inputs = {**batch_of(rows), "ref_chosen_logps": now[:4] + add[:, 0], "ref_rejected_logps": now[4:] + add[:, 1]}
    stub = SimpleNamespace(
        model=model.train(),
        accelerator=accelerator(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[theirs["loss_type"]],
        loss_weights=[1.0],
        beta=0.1,
        label_smoothing=theirs.get("label_smoothing", 0.0),
        use_weighting=False,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(discopop_tau=0.05),
    )
    return DPOTrainer._compute_loss(stub, FusedHead(model), inputs, False), model


def main() -> None:
    found: dict[str, Any] = {"trl": trl.__version__, "torch": torch.__version__}
    for case in POLICIES:
        found[case.name] = measured(*policy(case.theirs))
    for case in PREFERENCES:
        found[case.name] = measured(*preference(case.name, case.theirs))
    FILE.write_text(json.dumps(found, indent=1) + "\n")


def measured(loss: torch.Tensor, model: Any) -> dict[str, Any]:
    loss.backward()
    gradients = {name: probe(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": float(loss.detach()), "gradients": gradients}


if __name__ == "__main__":
    main()
