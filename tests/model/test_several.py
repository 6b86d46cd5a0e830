"""Several adapters on one base, against peft's own and against the sums they stand for."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from sapwood.errors import CheckpointError, ConfigError
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_adapter, save_adapter, trainable_parameters
from sapwood.model.several import adapter_names, add_adapter, stack_adapters, unload_adapter, use_adapter
from tiny.models import tiny_model
from train.tiny_training import random_examples, tiny_lm

ROWS = [row for example in random_examples(2) for row in example.rows]
TOKENS = torch.arange(2, 40)[None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two plain adapters of other ranks and scales, and one whose layers differ."""
    place, found = tmp_path_factory.mktemp("several"), {}
    for seed, (name, config) in enumerate(
        {
            "law": LoraConfig(r=4, alpha=8),
            "verse": LoraConfig(r=2, alpha=2, rslora=True),
            "some": LoraConfig(r=3, targets=("q_proj", "down_proj")),
            "patterned": LoraConfig(r=3, rank_pattern=("q_proj=1",), alpha_pattern=("down_proj=5",)),
        }.items()
    ):
        model = add_lora(tiny_lm(), config, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in trainable_parameters(model).values():
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        save_adapter(model, place / name)
        found[name] = place / name
    return found


def logprobs(model: LanguageModel) -> np.ndarray:
    return np.concatenate(model.logprobs(ROWS))


def plain(folders: dict[str, Path], *names: str) -> Any:
    """peft alone, with transformers' own attention."""
    base = tiny_model("llama", torch.float32, attention="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = peft.PeftModel.from_pretrained(base, str(folders[names[0]]), adapter_name=names[0])
        for name in names[1:]:
            module.load_adapter(str(folders[name]), adapter_name=name)
    return module.eval()


def logits(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        return module(TOKENS).logits


def ours(model: LanguageModel) -> torch.Tensor:
    model.module.set_attn_implementation("eager")
    return logits(model.module)


def loaded(folders: dict[str, Path], *names: str) -> LanguageModel:
    model = tiny_lm()
    for name in names:
        model = add_adapter(model, folders[name], name)
    return model


def test_each_adapter_computes_as_if_it_were_alone(folders: dict[str, Path]) -> None:
    model = loaded(folders, "law", "verse", "some")
    assert adapter_names(model) == ["law", "verse", "some"]
    assert trainable_parameters(model) == {}
    for name in ("some", "law", "verse", "law"):
        alone = load_adapter(tiny_lm(), folders[name])
        assert (logprobs(use_adapter(model, name)) == logprobs(alone)).all()


def test_switching_is_pefts_own(folders: dict[str, Path]) -> None:
    module, model = plain(folders, "law", "verse"), loaded(folders, "law", "verse")
    for name in ("law", "verse"):
        module.set_adapter(name)
        assert torch.allclose(ours(use_adapter(model, name)), logits(module), atol=1e-4)


@pytest.mark.parametrize(
    "weights",
    [{"law": 0.7, "verse": 0.5}, {"verse": 0.6, "law": 0.5}, {"law": 1.0, "some": -0.5}, {"law": 0.5, "verse": 0.25, "some": 2.0}],
)
def test_a_stack_adds_up_the_updates_and_is_pefts_own(folders: dict[str, Path], weights: dict[str, float]) -> None:
    names = list(weights)
    model, module = loaded(folders, *names), plain(folders, *names)
    stacked = stack_adapters(model, weights, "both")
    module.add_weighted_adapter(names, list(weights.values()), "both", combination_type="cat")
    module.set_adapter("both")
    if names[0] == "law":  # where the first has a rule of its own for its scale, peft scales the sum by it once more
        assert torch.allclose(ours(stacked), logits(module), atol=1e-4)
    base = tiny_model("llama", torch.float32, attention="eager")
    with torch.no_grad():  # the definition: every weight plus the weighted sum of the updates
        for name in names:
            use_adapter(model, name)
            for key, layer in model.module.named_modules():
                if hasattr(layer, "get_delta_weight") and name in layer.lora_A:
                    target = base.get_submodule(key.removeprefix("base_model.model."))
                    target.weight += weights[name] * layer.get_delta_weight(name)
    assert torch.allclose(ours(use_adapter(stacked, "both")), logits(base), atol=1e-4)
    assert adapter_names(stacked) == [*names, "both"]


def test_unloading_leaves_the_others_and_at_last_the_base(folders: dict[str, Path]) -> None:
    model = loaded(folders, "law", "verse")
    model = unload_adapter(model, "verse")
    assert (logprobs(model) == logprobs(load_adapter(tiny_lm(), folders["law"]))).all()
    model = unload_adapter(model, "law")
    assert adapter_names(model) == []
    assert np.allclose(logprobs(model), logprobs(tiny_lm()), atol=1e-5)
    model = add_adapter(model, folders["verse"], "verse")
    assert np.allclose(logprobs(model), logprobs(load_adapter(tiny_lm(), folders["verse"])), atol=1e-5)
    kept = loaded(folders, "law", "verse")
    assert (logprobs(unload_adapter(kept, "law")) == logprobs(load_adapter(tiny_lm(), folders["verse"]))).all(), "the one in force stays"


def test_names_that_are_taken_unknown_or_no_names_are_refused(folders: dict[str, Path]) -> None:
    model = loaded(folders, "law")
    with pytest.raises(ConfigError, match="called 'law' already"):
        add_adapter(model, folders["verse"], "law")
    with pytest.raises(ConfigError, match="letters, digits"):
        add_adapter(model, folders["verse"], "a.b")
    for act in (use_adapter, unload_adapter):
        with pytest.raises(ConfigError, match=r"no adapter called 'verse'\. Loaded: law"):
            act(model, "verse")
    with pytest.raises(ConfigError, match="no adapter called"):
        stack_adapters(model, {"law": 1, "verse": 1}, "both")
    with pytest.raises(ConfigError, match="No adapter is named"):
        stack_adapters(model, {}, "both")
    with pytest.raises(ConfigError, match="already"):
        stack_adapters(model, {"law": 1}, "law")


def test_an_adapter_of_another_base_is_refused_and_leaves_no_trace(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["law"], tmp_path / "other")
    described = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({**described, "r": 5}))
    model = loaded(folders, "verse")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        add_adapter(model, tmp_path / "other", "other")
    assert adapter_names(model) == ["verse"]
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({**described, "trainable_token_indices": {"embed_tokens": [3]}}))
    with pytest.raises(CheckpointError, match="can only be loaded first"):
        add_adapter(model, tmp_path / "other", "other")
    assert (logprobs(use_adapter(model, "verse")) == logprobs(load_adapter(tiny_lm(), folders["verse"]))).all()


@pytest.mark.parametrize(
    ("config", "said"), [(LoraConfig(r=2, dora=True), "DoRA"), (LoraConfig(r=2, modules_to_save=("lm_head",)), "whole layers")]
)
def test_sums_that_are_not_defined_are_refused(folders: dict[str, Path], tmp_path: Path, config: LoraConfig, said: str) -> None:
    save_adapter(add_lora(tiny_lm(), config, 0), tmp_path / "odd")
    model = add_adapter(loaded(folders, "law"), tmp_path / "odd", "odd")
    with pytest.raises(ConfigError, match=f"has {said}"):
        stack_adapters(model, {"law": 1, "odd": 1}, "both")
