"""Images and sounds: prompts are those of transformers' processor, and a forest gives the losses and gradients of its own forward."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sapwood.model.media
from sapwood.chat import Chat
from sapwood.errors import ModelError
from sapwood.forest import plant
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_model, trainable_parameters
from sapwood.model.media import FAMILIES
from sapwood.model.processor import load_processor
from sapwood.records import Conversation, Row
from tiny.media_models import TEMPLATES, write_media_model
from tiny.media_rows import conversations, media_chat, own_call, own_logprobs, write_media

try:
    import num2words  # noqa: F401
except ImportError:
    SERVED = [name for name in FAMILIES if name != "smolvlm"]
else:
    SERVED = list(FAMILIES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, chat, transformers' processor, conversations) of a family, each written once."""

    @cache
    def make(family: str) -> tuple[Path, Chat, Any, list[Conversation]]:
        folder = write_media_model(tmp_path_factory.mktemp(family), family)
        kind = FAMILIES[family].kinds[0]
        files = write_media(folder, kind)
        return folder, *media_chat(folder), conversations(kind, files)

    return make


def rows_of(chat: Chat, some: list[Conversation]) -> list[Row]:
    return [row for conversation in some for row in chat.example(conversation).rows]


def test_every_family_is_tested() -> None:
    assert set(TEMPLATES) == set(FAMILIES)


@pytest.mark.parametrize("family", SERVED)
def test_prompt_ids_and_features_are_those_of_the_processor(family: str, made: Any) -> None:
    _, chat, inner, some = made(family)
    for conversation in some:
        for turn in chat.turns(conversation):
            inputs = own_call(inner, chat, conversation, turn.index)
            assert inputs["input_ids"][0].tolist() == list(turn.prompt.ids)
            placeholders = {token_id for _, token_id in chat._media.placeholders.values()}
            assert not placeholders & set(turn.ids), "a placeholder is never trained"
            places = [place for span in turn.prompt.media for place in span.places_F.tolist()]
            assert places == [place for place, token in enumerate(turn.prompt.ids) if token in placeholders]


@pytest.mark.parametrize("family", SERVED)
def test_a_forest_equals_transformers_own_forward_with_every_lora_gradient(family: str, made: Any) -> None:
    folder, chat, inner, some = made(family)
    rows = rows_of(chat, some)
    forest = plant(rows, min_saving=1)
    assert forest.num_tokens < 0.8 * sum(len(row.inputs_T) for row in rows), "this test is about sharing"

    model = add_lora(load_model(folder, "fp64"), LoraConfig(r=4, alpha=8), seed=0)
    trained = trainable_parameters(model)
    for number, parameter in enumerate(trained.values()):
        torch.nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(number))
    logprob_E = model.target_logprobs(forest)[torch.from_numpy(forest.target_E)]
    logprob_E.sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in trained.items()}

    model.module.zero_grad()
    model.module.set_attn_implementation({"": "sdpa", "text_config": "sdpa"})
    expected = []
    for conversation in some:
        for turn in chat.turns(conversation):
            logprobs = own_logprobs(model.module, own_call(inner, chat, conversation, turn.index), turn.row)
            logprobs.sum().backward()
            expected.append(logprobs.detach())
    torch.testing.assert_close(logprob_E.detach(), torch.cat(expected), rtol=0, atol=1e-6)  # norms and angles are computed in fp32
    for name, parameter in trained.items():
        assert float(parameter.grad.abs().max()) > 0, f"{name} must get a gradient in this test"
        assert float((found[name] - parameter.grad).abs().max() / parameter.grad.abs().max()) < 1e-6, name


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "qwen2_audio"])
def test_full_tuning_reaches_every_weight_of_the_towers_that_transformers_own_forward_reaches(family: str, made: Any) -> None:
    folder, chat, inner, some = made(family)
    model = load_model(folder, "fp64")
    model.module.requires_grad_(True)
    forest = plant(rows_of(chat, some), min_saving=1)
    model.target_logprobs(forest)[torch.from_numpy(forest.target_E)].sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.module.named_parameters() if parameter.grad is not None}
    model.module.zero_grad()
    model.module.set_attn_implementation({"": "sdpa", "text_config": "sdpa"})
    for conversation in some:
        for turn in chat.turns(conversation):
            own_logprobs(model.module, own_call(inner, chat, conversation, turn.index), turn.row).sum().backward()
    expected = {name: parameter.grad for name, parameter in model.module.named_parameters() if parameter.grad is not None}
    assert found.keys() == expected.keys()
    largest = max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in expected.items():  # a bias of keys has a gradient of nothing but rounding
        assert float((found[name] - grad).abs().max()) < 1e-5 * max(float(grad.abs().max()), 1e-3 * largest), name


@pytest.mark.parametrize("family", SERVED)
def test_the_adapter_leaves_towers_alone(family: str, made: Any) -> None:
    model = add_lora(load_model(made(family)[0], "fp32"), LoraConfig(r=2), seed=0)
    names = list(trainable_parameters(model))
    decoder = next(name for name, module in model.module.named_modules() if module is model.base.get_decoder())
    assert names
    assert all(name.startswith(f"{decoder}.") for name in names)
    assert not sapwood.model.media.tower_is_trained(model.base)
    model.module.requires_grad_(True)
    assert sapwood.model.media.tower_is_trained(model.base)


def test_one_image_is_shared_and_encoded_once_and_two_images_are_not_shared(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, chat, _, some = made("llava")
    same, other, again = (rows_of(chat, [some[index]])[0] for index in (0, 1, 2))
    assert np.array_equal(same.inputs_T, other.inputs_T), "the two rows have the same tokens"
    before = same.media[0].start
    assert plant([same, other], min_saving=1).nodes_M[0].tolist() == [0, before, -1]
    together = plant([same, again], min_saving=1)
    assert together.nodes_M[0, 1] > same.media[0].places_F[-1]
    assert [medium.places_OF.shape for medium in together.media] == [(1, same.media[0].length)]

    calls: list[str] = []
    original = sapwood.model.media._features
    monkeypatch.setattr(sapwood.model.media, "_features", lambda *args: calls.append(args[2].hash) or original(*args))
    model = load_model(folder, "fp32")
    twice = rows_of(chat, [some[5]])[0]
    model.target_logprobs(plant([same, other, again, twice]))
    assert sorted(calls) == sorted({row.media[0].content.hash for row in (same, other)})


def test_rows_of_a_text_alone_go_through_a_model_that_sees(made: Any) -> None:
    folder, chat, _, some = made("qwen2_vl")
    model: LanguageModel = load_model(folder, "fp32")
    rows = rows_of(chat, some)
    together = model.logprobs(rows)
    for row, logprobs in zip(rows, together, strict=True):
        np.testing.assert_allclose(model.logprobs([row])[0], logprobs, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma3", "paligemma", "mllama", "llama"])
def test_families_that_are_not_covered_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    with pytest.raises(ModelError, match=rf"not covered for the family '{kind}'.*Covered: llava \(image\), "):
        load_processor(tmp_path)
