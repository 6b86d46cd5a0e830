"""Ten steps of a run against a plain loop: transformers, peft and torch alone, one row at a time."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from sapwood.model import LoraConfig
from sapwood.train import OptimConfig, SftConfig
from tiny.models import tiny_model
from train.tiny_training import random_examples, train, trained_steps

# of peft itself, on loading in plain peft
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

STEPS, BATCH, COUNT, SEED = 10, 4, 10, 3
PEAK, FINAL, WARMUP, DECAY = 2e-3, 0.2, 2, 0.1
CONFIG: dict[str, Any] = {
    "epochs": STEPS * BATCH / COUNT,
    "batch": BATCH,
    "seed": SEED,
    "budget": 150,
    "optim": OptimConfig(lr=PEAK, final=FINAL, warmup=WARMUP / STEPS, weight_decay=DECAY, max_grad_norm=0.7),
}


def plain_run(module: Any) -> list[float]:
    """The loss of each step, and the module trained in place."""
    examples = random_examples(COUNT)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    shuffles = [np.random.Generator(np.random.Philox(key=[SEED, epoch])).permutation(COUNT) for epoch in range(4)]
    line = np.concatenate(shuffles)
    losses = []
    for step in range(STEPS):
        rows = [row for index in line[step * BATCH : (step + 1) * BATCH] for row in examples[index].rows]
        total = sum(float(row.weights_T.sum()) for row in rows)
        loss = torch.zeros(())
        for row in rows:
            ids = torch.from_numpy(np.concatenate([row.prompt_T, row.completion_T]))
            logits = module(input_ids=ids[None], use_cache=False).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[len(row.prompt_T) - 1 :]
            loss = loss + (nll * torch.from_numpy(row.weights_T)).sum() / total
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(trained, 0.7)
        falling = (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - 1 - WARMUP))) / 2
        rate = PEAK * (step + 1) / WARMUP if step < WARMUP else PEAK * (FINAL + (1 - FINAL) * falling)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        adamw.zero_grad()
    return losses


def stock_model() -> Any:
    return tiny_model("llama", torch.float32, attention="sdpa")


def prompt_logits(module: Any) -> torch.Tensor:
    ids = torch.from_numpy(random_examples(3, seed=5)[0].rows[0].inputs_T)[None]
    with torch.no_grad():
        logits: torch.Tensor = module.eval()(input_ids=ids, use_cache=False).logits
    return logits


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    train(folder, SftConfig(**CONFIG, lora=LoraConfig(r=4, alpha=8)), examples=random_examples(COUNT))
    return folder


def test_ten_lora_steps_equal_a_plain_loop(lora_run: Path) -> None:
    base = stock_model()
    torch.manual_seed(SEED)
    reference = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    begin = copy.deepcopy(peft.get_peft_model_state_dict(reference, save_embedding_layers=False))
    expected = plain_run(reference)
    records = trained_steps(lora_run)
    assert [record["loss"] for record in records] == pytest.approx(expected, abs=1e-5)
    found = peft.load_peft_weights(str(lora_run / "adapter"), device="cpu")
    final = peft.get_peft_model_state_dict(reference, save_embedding_layers=False)
    assert found.keys() == final.keys()
    moved = max(float((final[name] - begin[name]).abs().max()) for name in final)
    # Adam divides by the size of the gradient: where that is nearly nothing, rounding shows
    assert max(float((found[name] - final[name]).abs().max()) for name in final) < 1e-2 * moved
    away, path = (sum(float((final[name] - other[name]).square().sum()) for name in final) for other in (found, begin))
    assert away < 1e-7 * path


def test_the_adapter_loads_in_plain_peft_with_the_same_logits(lora_run: Path, tmp_path: Path) -> None:
    base = stock_model()
    base.save_pretrained(tmp_path)
    untuned = prompt_logits(base)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    loaded = prompt_logits(peft.PeftModel.from_pretrained(fresh, str(lora_run / "adapter")))
    again = train(lora_run, SftConfig(**CONFIG, lora=LoraConfig(r=4, alpha=8)), examples=random_examples(COUNT)).model.module
    again.set_attn_implementation("sdpa")
    torch.testing.assert_close(loaded, prompt_logits(again), rtol=0, atol=3e-5)  # rounding of fp32
    assert float((loaded - untuned).abs().max()) > 0.1, "the adapter must matter in this test"


def test_ten_full_steps_equal_a_plain_loop(tmp_path: Path) -> None:
    train(tmp_path, SftConfig(**CONFIG, full=True), examples=random_examples(COUNT))
    reference = stock_model()
    begin = {name: parameter.detach().clone() for name, parameter in reference.named_parameters()}
    expected = plain_run(reference)
    assert [record["loss"] for record in trained_steps(tmp_path)] == pytest.approx(expected, abs=1e-5)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="sdpa")
    found = dict(loaded.named_parameters())
    moved = max(float((parameter - begin[name]).detach().abs().max()) for name, parameter in reference.named_parameters())
    for name, parameter in reference.named_parameters():
        assert float((found[name] - parameter).detach().abs().max()) < 2e-3 * moved, name
    torch.testing.assert_close(prompt_logits(loaded), prompt_logits(reference), rtol=0, atol=1e-3)
    assert not (tmp_path / "adapter").exists()
