"""Ten steps of a run against a plain loop: transformers, peft and torch alone, one row at a time."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import pytest
import torch
import transformers

from sapwood.model import LoraConfig
from sapwood.train import SftConfig
from train.plain_loop import CONFIG, COUNT, SEED, plain_run, prompt_logits, stock_model
from train.tiny_training import random_examples, train, trained_steps

# of peft itself, on loading in plain peft
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


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
