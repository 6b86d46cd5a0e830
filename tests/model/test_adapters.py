"""Adapters: where they sit, how they begin, and what is refused."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sapwood.errors import CheckpointError, ConfigError, ModelError, StorageError
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_adapter, save_adapter, trainable_parameters
from tiny.models import SIZES
from train.tiny_training import random_examples, tiny_lm

ROWS = [row for example in random_examples(3) for row in example.rows]


def other_model(**sizes: Any) -> LanguageModel:
    config = transformers.LlamaConfig(**{**SIZES, **sizes})
    return LanguageModel(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sapwood").eval(), probe=False)


def shaken(model: LanguageModel) -> LanguageModel:
    """With an adapter that changes the model."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trained() -> None:
    base, model = tiny_lm(), add_lora(tiny_lm(), LoraConfig(), 0)
    for ours, theirs in zip(model.logprobs(ROWS), base.logprobs(ROWS), strict=True):
        assert abs(ours - theirs).max() < 1e-5
    assert all("lora_" in name for name in trainable_parameters(model))
    assert len(trainable_parameters(model)) == 3 * 7 * 2
    assert not any("lm_head" in name for name in trainable_parameters(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapters_are_fp32_whatever_the_base_is(dtype: torch.dtype) -> None:
    model = add_lora(tiny_lm(dtype), LoraConfig(), 0)
    assert {parameter.dtype for parameter in trainable_parameters(model).values()} == {torch.float32}


def test_the_draw_depends_on_the_seed_alone_and_disturbs_nobody() -> None:
    drawn = []
    for global_seed, seed in ((1, 7), (2, 7), (1, 8)):
        model = tiny_lm()
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        parameters = trainable_parameters(add_lora(model, LoraConfig(), seed))
        assert torch.equal(before, torch.get_rng_state())
        drawn.append({name: parameter.detach() for name, parameter in parameters.items() if "lora_A" in name})
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


@pytest.mark.parametrize("targets", [("q_porj",), ("q_proj", "v_porj"), ("proj",), (), ("all-linear", "q_proj")])
def test_a_name_that_no_layer_has_is_refused_with_the_names_there_are(targets: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets .*Linear layers here: down_proj, gate_proj, k_proj, lm_head, o_proj"):
        add_lora(tiny_lm(), LoraConfig(targets=targets), 0)


@pytest.mark.parametrize(
    ("targets", "count"), [(("q_proj", "v_proj"), 6), (("self_attn.q_proj",), 3), (("model.layers.1.mlp.up_proj",), 1)]
)
def test_adapters_sit_where_they_were_asked_for(targets: tuple[str, ...], count: int) -> None:
    names = trainable_parameters(add_lora(tiny_lm(), LoraConfig(targets=targets), 0))
    assert len(names) == 2 * count
    assert all(any(target in name for target in targets) for name in names)


def test_a_second_adapter_is_refused() -> None:
    model = tiny_lm()
    add_lora(model, LoraConfig(), 0)
    for again in (model, add_lora(tiny_lm(), LoraConfig(), 0)):
        with pytest.raises(ModelError, match="carries an adapter already"):
            add_lora(again, LoraConfig(), 0)


@pytest.mark.parametrize(("knob", "value"), [("r", 0), ("alpha", 0.0), ("alpha", math.nan)])
def test_a_knob_out_of_range_is_named(knob: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"lora.{knob} is {value}"):
        LoraConfig(**{knob: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_saved_computes_the_same_when_loaded(tmp_path: Path, rslora: bool) -> None:
    model = shaken(add_lora(tiny_lm(), LoraConfig(r=4, rslora=rslora), 0))
    save_adapter(model, tmp_path)
    loaded = load_adapter(tiny_lm(), tmp_path)
    assert trainable_parameters(loaded) == {}
    assert trainable_parameters(load_adapter(tiny_lm(), tmp_path, trainable=True)).keys() == trainable_parameters(model).keys()
    for ours, theirs, untuned in zip(loaded.logprobs(ROWS), model.logprobs(ROWS), tiny_lm().logprobs(ROWS), strict=True):
        assert (ours == theirs).all()
        assert abs(ours - untuned).max() > 0.1


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match=r"holds no adapter_config\.json with adapter_model\.safetensors.*`adapter` folder"):
            load_adapter(tiny_lm(), tmp_path)
        save_adapter(add_lora(tiny_lm(), LoraConfig(), 0), tmp_path)
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="holds no"):
        load_adapter(tiny_lm(), tmp_path)


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 4}, {"num_hidden_layers": 2}, {"hidden_size": 64}, {"intermediate_size": 40}])
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, sizes: dict[str, int]) -> None:
    save_adapter(add_lora(tiny_lm(), LoraConfig(), 0), tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit the model|belongs to another model"):
        load_adapter(other_model(**sizes), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "not json", "unknown kind"])
def test_a_damaged_adapter_is_refused(tmp_path: Path, damage: str) -> None:
    save_adapter(add_lora(tiny_lm(), LoraConfig(), 0), tmp_path)
    config, tensors = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "not json":
        config.write_text("{")
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "MAGIC"}))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_adapter(tiny_lm(), tmp_path)


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: int) -> None:
    model = add_lora(tiny_lm(), LoraConfig(), 0)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(cause, "refused")

    monkeypatch.setattr("peft.peft_model.safe_save_file", refuse)
    with pytest.raises(StorageError, match="write the adapter"):
        save_adapter(model, tmp_path / "adapter")
