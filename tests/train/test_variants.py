"""Every kind of adapter and optimizer: ten steps against plain peft, and the saved adapter in plain peft on the base as it was."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers.optimization import Adafactor

from sapwood.model import LanguageModel, LoraConfig, load_adapter
from sapwood.train import SftConfig
from tiny.models import tiny_model
from train.plain_loop import CONFIG, COUNT, SEED, adamw, plain_run, prompt_logits, stock_model, tie
from train.tiny_training import random_examples, train, trained_steps

ROWS = [row for example in random_examples(3, seed=5) for row in example.rows]
ALL: dict[str, Any] = {"target_modules": "all-linear"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rslora": ({"rslora": True}, {**ALL, "use_rslora": True}),
    "dora": ({"dora": True}, {**ALL, "use_dora": True}),
    "dora, rslora and gaussian": (
        {"dora": True, "rslora": True, "init": "gaussian"},
        {**ALL, "use_dora": True, "use_rslora": True, "init_lora_weights": "gaussian"},
    ),
    "orthogonal": ({"init": "orthogonal"}, {**ALL, "init_lora_weights": "orthogonal"}),
    "olora": ({"init": "olora"}, {**ALL, "init_lora_weights": "olora"}),
    "pissa": ({"init": "pissa"}, {**ALL, "init_lora_weights": "pissa"}),
    "pissa_niter_4": ({"init": "pissa_niter_4"}, {**ALL, "init_lora_weights": "pissa_niter_4"}),
    "pissa, rslora and patterns": (
        {"init": "pissa", "rslora": True, "rank_pattern": ("q_proj=2",), "alpha_pattern": ("v_proj=3",)},
        {**ALL, "init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    ),
    "pissa and dora": ({"init": "pissa", "dora": True}, {**ALL, "init_lora_weights": "pissa", "use_dora": True}),
    "mica": ({"init": "mica"}, {**ALL, "init_lora_weights": "mica"}),
    "names": ({"targets": ("q_proj", "mlp.up_proj")}, {"target_modules": ["q_proj", "mlp.up_proj"]}),
    "a pattern": ({"targets": (r".*layers\.[02]\..*_proj",)}, {"target_modules": r".*layers\.[02]\..*_proj"}),
    "a pattern and a name": (
        {"targets": (r".*layers\.[02]\.mlp\..*", "q_proj")},
        {"target_modules": r".*layers\.[02]\.mlp\.(?:up_proj|down_proj|gate_proj)|.*\.q_proj"},
    ),
    "all but some": ({"exclude": ("q_proj", r".*\.1\.mlp\..*")}, {**ALL, "exclude_modules": r".*\.q_proj|.*\.1\.mlp\..*"}),
    "some layers": ({"targets": ("q_proj",), "layers": (0, 2)}, {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}),
    "all of one layer": ({"layers": (1,)}, {"target_modules": r".*\.layers\.1\..*_proj"}),
    "patterns": (
        {"rank_pattern": ("q_proj=2", r"layers\.0\.mlp\..*=6"), "alpha_pattern": ("v_proj=3",)},
        {**ALL, "rank_pattern": {"q_proj": 2, r"layers\.0\.mlp\..*": 6}, "alpha_pattern": {"v_proj": 3}},
    ),
    "biases of its layers": ({"bias": "lora_only", "targets": ("q_proj",)}, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "all biases": ({"bias": "all"}, {**ALL, "bias": "all"}),
    "the head whole": ({"modules_to_save": ("lm_head",)}, {**ALL, "modules_to_save": ["lm_head"]}),
    "both ends whole": ({"modules_to_save": ("lm_head", "embed_tokens")}, {**ALL, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "the last norm whole": ({"modules_to_save": ("model.norm",)}, {**ALL, "modules_to_save": ["model.norm"]}),
    "the head too": ({"targets": ("q_proj", "lm_head")}, {"target_modules": ["q_proj", "lm_head"]}),
    "the embedding too": ({"targets": ("q_proj", "embed_tokens")}, {"target_modules": ["q_proj", "embed_tokens"]}),
}
"""Sapwood's words, and peft's."""


def with_peft(module: Any, **words: Any) -> Any:
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(module, peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **words))


def loaded_by_peft(module: Any, folder: Path) -> torch.Tensor:
    """What a model says with the saved adapter, for somebody who has peft alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied embeddings, and peft's own on gradient checkpointing
        return prompt_logits(peft.PeftModel.from_pretrained(module, str(folder)))


def check_run(folder: Path, config: SftConfig, expected: list[float], reference: Any, fresh: Any, *, tied: bool = False) -> None:
    """A run of ours: its losses are those expected, and its adapter, on a fresh base, says what the reference says."""
    untuned = prompt_logits(fresh)
    module, again = (tiny_model("qwen2", torch.float32) for _ in range(2))
    result = train(folder, config, examples=random_examples(COUNT), model=LanguageModel(tie(module) if tied else module, probe=False))
    assert [record["loss"] for record in trained_steps(folder)] == pytest.approx(expected, abs=3e-5)
    loaded = loaded_by_peft(fresh, folder / "adapter")
    torch.testing.assert_close(loaded, prompt_logits(reference), rtol=0, atol=3e-3)  # Adam makes much of rounding
    ours = load_adapter(LanguageModel(tie(again) if tied else again, probe=False), folder / "adapter").logprobs(ROWS)
    for here, there in zip(ours, result.model.logprobs(ROWS), strict=True):
        assert abs(here - there).max() < 1e-4, "what is loaded again computes what was trained"
    assert float((loaded - untuned).abs().max()) > 0.02, "the adapter must matter in this test"


@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_steps_equal_plain_peft_and_the_file_serves_it(tmp_path: Path, variant: str) -> None:
    ours, theirs = VARIANTS[variant]
    reference = with_peft(stock_model("qwen2"), **theirs)
    expected = plain_run(reference)
    config = SftConfig(**CONFIG, lora=LoraConfig(r=4, alpha=8, **ours))
    check_run(tmp_path, config, expected, reference, stock_model("qwen2"))


def test_what_is_tied_stays_tied(tmp_path: Path) -> None:
    reference = with_peft(stock_model("qwen2", tied=True), ensure_weight_tying=True, **ALL, modules_to_save=["embed_tokens"])
    expected = plain_run(reference)
    config = SftConfig(**CONFIG, lora=LoraConfig(r=4, alpha=8, modules_to_save=("embed_tokens",)))
    check_run(tmp_path, config, expected, reference, stock_model("qwen2", tied=True), tied=True)


def test_ten_steps_of_adafactor_equal_transformers_own(tmp_path: Path) -> None:
    reference = with_peft(stock_model("qwen2"), **ALL)
    expected = plain_run(reference, lambda groups: Adafactor(groups, lr=1.0, scale_parameter=False, relative_step=False, warmup_init=False))
    optim = replace(CONFIG["optim"], optimizer="adafactor")
    config = SftConfig(**{**CONFIG, "optim": optim}, lora=LoraConfig(r=4, alpha=8))
    check_run(tmp_path, config, expected, reference, stock_model("qwen2"))


def test_ten_steps_with_another_rate_for_b(tmp_path: Path) -> None:
    reference = with_peft(stock_model("qwen2"), **ALL)
    expected = plain_run(reference, adamw, b_ratio=4.0)
    config = SftConfig(**{**CONFIG, "optim": replace(CONFIG["optim"], b_ratio=4.0)}, lora=LoraConfig(r=4, alpha=8))
    check_run(tmp_path, config, expected, reference, stock_model("qwen2"))
