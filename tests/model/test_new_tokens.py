"""Trained rows of the embeddings: against peft's own forward, values and gradients; saved, loaded, merged; and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

from sapwood.attention import TreeAttention, register
from sapwood.errors import CheckpointError, ModelError
from sapwood.forest import plant
from sapwood.model import LanguageModel, LoraConfig, add_lora, learn_tokens, load_adapter, load_model, save_adapter, trainable_parameters
from sapwood.model import new_tokens as room
from sapwood.records import Row
from tiny.models import SIZES, fp64_norms, tiny_model

register()

NEW = (97, 98)
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama, tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2, untied": (transformers.Qwen2Config, {"tie_word_embeddings": False}),
    "gemma3, tied and scaled": (transformers.Gemma3TextConfig, {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma2, scaled and soft-capped": (transformers.Gemma2Config, {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gpt2, a table of positions": (transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "granite, scaled logits": (
        transformers.GraniteConfig,
        {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "tie_word_embeddings": True},
    ),
}


def fresh(family: str, dtype: torch.dtype = torch.float32, **sizes: Any) -> LanguageModel:
    """A random model without an adapter; the same weights each time."""
    kind, extra = FAMILIES[family]
    torch.manual_seed(0)
    config = kind(**{**SIZES, **extra, **sizes})
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sapwood", dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel(module.to(dtype).eval())


def tuned(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """With two new tokens, and an adapter that changes the model and their rows."""
    model = fresh(family, dtype)
    learn_tokens(model, NEW)
    model = add_lora(model, LoraConfig(r=4), 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def rows() -> list[Row]:
    """Two rows with new tokens in prompt and completion, once as the very last."""
    rng = np.random.default_rng(5)
    first = np.array([97, *rng.integers(2, 97, 6), 98, 97, *rng.integers(2, 97, 4), 98])
    second = np.array([*first[:8], *rng.integers(2, 97, 5), 98])
    return [Row(ids[:5], ids[5:], np.ones(len(ids) - 5, np.float32)) for ids in (first, second)]


def with_peft_alone(model: LanguageModel) -> LanguageModel:
    """The same model with peft's own forward in every layer."""
    for layer in model.module.modules():
        layer.__dict__.pop("forward", None)
    return model


def plain_logits(module: Any, row: Row) -> Tensor:
    """Through transformers' and peft's own call, with transformers' own attention."""
    module.set_attn_implementation("eager")
    ids = torch.from_numpy(np.concatenate([row.prompt_T, row.completion_T]))[None]
    logits: Tensor = module(input_ids=ids).logits[0]
    return logits


def plain_logprobs(module: Any, row: Row) -> Tensor:
    logits = plain_logits(module, row).float() if module.dtype == torch.bfloat16 else plain_logits(module, row)
    begin = len(row.prompt_T) - 1
    picked = logits[begin:-1].log_softmax(-1)
    return picked[torch.arange(len(row.completion_T)), torch.from_numpy(row.completion_T)]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_plain_peft(family: str) -> None:
    model, reference = tuned(family), with_peft_alone(tuned(family))
    untuned = fresh(family)
    learn_tokens(untuned, NEW)
    for row, ours, before in zip(rows(), model.logprobs(rows()), untuned.logprobs(rows()), strict=True):
        theirs = plain_logprobs(reference.module, row).detach().numpy()
        assert abs(ours - theirs).max() < 1e-5
        assert abs(ours - before).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_plain_peft(family: str) -> None:
    model, reference = tuned(family, torch.float64), with_peft_alone(tuned(family, torch.float64))
    for one in (model, reference):
        one.module.double()  # the adapters too, or rounding hides what differs
    assert model.shares_prefixes
    forest = plant(rows(), min_saving=1)
    weights = [torch.linspace(0.5, 1.5, len(row.completion_T), dtype=torch.float64) for row in rows()]
    weight_E = torch.stack([weights[row][place] for row, place in zip(forest.row_E, forest.place_E, strict=True)])
    with fp64_norms(model.base):
        (model.target_logprobs(forest)[torch.from_numpy(forest.target_E)] * weight_E).sum().backward()  # type: ignore[no-untyped-call]
        for row, weight_N in zip(rows(), weights, strict=True):
            alone = plant([row])
            hidden = reference.hidden(alone.tokens_T, alone.positions_T, TreeAttention(alone))
            logprobs = reference.logits(hidden).log_softmax(-1)[len(row.prompt_T) - 1 :]
            picked = logprobs[torch.arange(len(row.completion_T)), torch.from_numpy(row.completion_T)]
            (picked * weight_N).sum().backward()  # type: ignore[no-untyped-call]
    ours, theirs = trainable_parameters(model), trainable_parameters(reference)
    assert ours.keys() == theirs.keys()
    assert sum("trainable_tokens" in name for name in ours) == (2 if "untied" in family else 1)
    for name, parameter in ours.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-11, msg=name)


def test_rows_are_kept_in_fp32_and_rounded_as_peft_rounds_them_beside_a_bf16_base() -> None:
    model, reference = tuned("qwen2, untied", torch.bfloat16), with_peft_alone(tuned("qwen2, untied", torch.bfloat16))
    assert {parameter.dtype for parameter in trainable_parameters(model).values()} == {torch.float32}
    for row, ours in zip(rows(), model.logprobs(rows()), strict=True):
        theirs = plain_logprobs(reference.module, row).detach().numpy()
        assert abs(ours - theirs).max() < 0.2  # rounding of the two paths through a bf16 model
    row_K = room.head_parts(model.base.get_output_embeddings())
    assert row_K is not None
    head, index_K, _ = row_K
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    theirs = reference.base.get_output_embeddings()(hidden)
    assert torch.equal(model.base.get_output_embeddings()(hidden)[:, index_K], theirs[:, index_K])
    assert head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_new_rows_start_at_the_mean_and_leave_what_was_there_alone(family: str) -> None:
    before, model = fresh(family), fresh(family)
    said = learn_tokens(model, NEW)
    assert said == ["The embedding grows from 97 to 99 rows for the new tokens."]
    assert model.vocabulary == 99 == model.base.config.vocab_size
    for old, grown in zip(ends(before), ends(model), strict=True):
        assert torch.equal(grown[:97], old)
        torch.testing.assert_close(grown[97:], old.mean(0).expand(2, -1), rtol=0, atol=1e-6)
    short = [Row(np.arange(2, 7), np.arange(7, 12), np.ones(5, np.float32))]
    drop = before.logprobs(short)[0] - model.logprobs(short)[0]
    assert (drop > -1e-5).all(), "two more tokens to choose from can only take probability"
    assert (drop < np.log(2)).all(), "rows at the mean never win: their logit is the mean logit"


def ends(model: LanguageModel) -> tuple[Tensor, Tensor]:
    return model.base.get_input_embeddings().weight.detach(), model.base.get_output_embeddings().weight.detach()


def test_padded_rows_are_taken_before_new_ones_and_count_for_no_mean() -> None:
    model = fresh("qwen2, untied", vocab_size=104)
    with torch.no_grad():
        model.base.get_input_embeddings().weight[97:] = 50.0
    said = learn_tokens(model, NEW)
    assert said == ["The new tokens take rows of the embedding that no other token has; it keeps its 104 rows."]
    weight = ends(model)[0]
    torch.testing.assert_close(weight[97:99], weight[:97].mean(0).expand(2, -1), rtol=0, atol=1e-6)
    assert (weight[99:] == 50).all()


def test_the_mean_of_a_bf16_embedding_is_taken_in_fp32() -> None:
    model = fresh("llama, tied", torch.bfloat16)
    expected = ends(model)[0].float().mean(0).bfloat16()
    learn_tokens(model, NEW)
    torch.testing.assert_close(ends(model)[0][97], expected, rtol=1e-2, atol=1e-6)


def test_the_mean_of_many_rows_is_taken_block_by_block() -> None:
    weight = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = weight[[row for row in range(995) if row != 7]].mean(0)
    room._start_at_the_mean(weight, [7, 995, 999], end=995, block=64)
    torch.testing.assert_close(weight[[7, 995, 999]], expected.expand(3, -1), rtol=0, atol=1e-15)


def test_known_tokens_are_trained_where_they_look_untrained_and_named() -> None:
    model = fresh("qwen2, untied")
    assert learn_tokens(model, (), known=(5, 6, 7)) == []
    assert model.new_tokens == ()
    with torch.no_grad():
        ends(model)[0][5] *= 1e-3  # hardly moved from zero
        ends(model)[1][7] = ends(model)[1][40]  # never told apart
    said = learn_tokens(model, (), known=(5, 6, 7))
    assert said == ["The embeddings of the template's token ids 5, 7 look untrained: they start at the mean and are trained too."]
    assert model.new_tokens == (5, 7)
    others = [token for token in range(97) if token not in (5, 7)]
    torch.testing.assert_close(ends(model)[0][5], ends(model)[0][others].mean(0), rtol=0, atol=1e-6)
    wrapped = add_lora(model, LoraConfig(r=2), 0)
    names = [name for name in trainable_parameters(wrapped) if "trainable_tokens" in name]
    assert len(names) == 2


def test_tokens_of_a_tokenizer_that_has_outgrown_its_model_get_rows() -> None:
    model = fresh("llama, tied")
    assert learn_tokens(model, (), known=(5, 97)) == ["The embedding grows from 97 to 98 rows for the new tokens."]
    assert model.new_tokens == (97,)


def test_ids_that_nothing_explains_are_refused() -> None:
    with pytest.raises(ModelError, match=r"reach up to id 99, but the model's embedding has 97 rows.* ids from 97 on"):
        learn_tokens(fresh("llama, tied"), (), known=(99,))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_the_same_here_in_plain_peft_and_merged(tmp_path: Path, family: str) -> None:
    fresh(family).module.save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", "fp32")
    learn_tokens(model, NEW)
    model = add_lora(model, LoraConfig(r=4), 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, tmp_path / "adapter")
    ours = model.logprobs(rows())

    base = load_model(tmp_path / "base", "fp32")
    loaded = load_adapter(base, tmp_path / "adapter")
    assert loaded.notes == ["The embedding grows from 97 to 99 rows for the new tokens."]
    assert loaded.new_tokens == NEW
    assert all((a == b).all() for a, b in zip(loaded.logprobs(rows()), ours, strict=True))

    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    plain.resize_token_embeddings(99)  # as AutoPeftModelForCausalLM does, with random new rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reloaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    for row, logprobs in zip(rows(), ours, strict=True):
        assert abs(plain_logprobs(reloaded, row).detach().numpy() - logprobs).max() < 1e-5
    merged = reloaded.merge_and_unload()
    assert not any("token_adapter" in name for name, _ in merged.named_modules())
    merged.save_pretrained(tmp_path / "merged")
    whole = load_model(tmp_path / "merged", "fp32")
    for merged_logprobs, logprobs in zip(whole.logprobs(rows()), ours, strict=True):
        assert abs(merged_logprobs - logprobs).max() < 1e-5


def test_an_adapter_whose_tokens_do_not_follow_the_model_is_refused(tmp_path: Path) -> None:
    save_adapter(tuned("llama, tied"), tmp_path)
    small = fresh("llama, tied", vocab_size=90)
    with pytest.raises(CheckpointError, match=r"another vocabulary\. The tokens reach up to id 98, but the model's embedding has 90 rows"):
        load_adapter(small, tmp_path)
    assert small.vocabulary == 90, "a refusal leaves the model as it was"


def test_a_damaged_list_of_tokens_is_refused(tmp_path: Path) -> None:
    save_adapter(tuned("llama, tied"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "trainable_token_indices": {"model.embed_tokens": [[97]]}}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_adapter(fresh("llama, tied"), tmp_path)


def test_a_switched_off_adapter_is_the_base_again() -> None:
    model, base = tuned("llama, tied"), fresh("llama, tied")
    learn_tokens(base, NEW)
    with model.module.disable_adapter():
        for ours, theirs in zip(model.logprobs(rows()), base.logprobs(rows()), strict=True):
            assert abs(ours - theirs).max() < 1e-5


def test_a_head_with_a_bias_is_refused_with_an_adapter_and_served_in_full() -> None:
    torch.manual_seed(0)
    config = transformers.PhiConfig(**{**SIZES, "num_key_value_heads": 4})
    model = LanguageModel(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sapwood").eval())
    learn_tokens(model, NEW)
    assert all(np.isfinite(values).all() for values in model.logprobs(rows()))
    with pytest.raises(ModelError, match=r"head with a bias.*`--full`.*plain"):
        add_lora(model, LoraConfig(), 0)


def test_a_model_with_embeddings_by_layer_is_refused_before_it_is_touched() -> None:
    config = transformers.Gemma4TextConfig(**{**SIZES, "head_dim": 8, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8})
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sapwood").eval()
    model = LanguageModel(module, probe=False)
    with pytest.raises(ModelError, match=r"second embedding of its tokens \(model\.embed_tokens_per_layer\).*plain"):
        learn_tokens(model, NEW)
    assert model.vocabulary == 97


def test_looking_at_sizes_and_devices_makes_no_copy_of_the_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned("llama, tied")

    def copied(*_: object, **__: object) -> None:
        raise AssertionError("the whole embedding was copied")

    monkeypatch.setattr("peft.tuners.trainable_tokens.layer.TrainableTokensLayer.get_merged_weights", copied)
    assert model.vocabulary == 99
    assert model.device.type == "cpu"
    assert len(model.logprobs(rows())) == 2


def test_without_new_tokens_nothing_changes() -> None:
    model = LanguageModel(tiny_model("llama", torch.float32), probe=False)
    assert learn_tokens(model, ()) == []
    assert not any("trainable_tokens" in name for name in trainable_parameters(add_lora(model, LoraConfig(), 0)))
