"""Generation with images and sounds: token by token what transformers' own generate gives on the processor's inputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers

from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.model.media import FAMILIES
from sapwood.records import SamplingParams
from tiny.media_models import write_media_model
from tiny.media_rows import conversations, media_chat, own_call, write_media

# of each way to fill the rotary's axes, each tower's own input, and sound
SERVED = ["llava", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_audio"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(family: str) -> Any:
        folder = write_media_model(tmp_path_factory.mktemp(family), family)
        files = write_media(folder, FAMILIES[family].kinds[0])
        return folder, *media_chat(folder), conversations(FAMILIES[family].kinds[0], files)

    return make


@pytest.mark.parametrize("budget", [2048, 11])  # 11: stretches of tokens are cut in the middle of an image
@pytest.mark.parametrize("family", SERVED)
def test_greedy_answers_are_those_of_transformers(family: str, budget: int, made: Any) -> None:
    folder, chat, inner, some = made(family)
    engine = Engine(load_model(folder, "fp32"), chat, budget=budget, min_saving=1, keep_from=1, slots=4)
    turns = [(conversation, index) for conversation in some for index in (2,)]
    prompts = [chat.prompt(conversation.messages[:index]) for conversation, index in turns]
    found = engine.generate(prompts, SamplingParams(max_new_tokens=7))
    own = getattr(transformers, FAMILIES[family].model).from_pretrained(folder, dtype=torch.float32)
    for (conversation, index), completion in zip(turns, found, strict=True):
        inputs = own_call(inner, chat, conversation, index)
        with torch.inference_mode():
            ids = own.generate(**inputs, max_new_tokens=7, do_sample=False, eos_token_id=sorted(chat.stop_ids), pad_token_id=0)
        assert list(completion.ids) == ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_sampled_answers_do_not_depend_on_the_batch(made: Any) -> None:
    folder, chat, _, some = made("qwen2_vl")
    engine = Engine(load_model(folder, "fp64"), chat, min_saving=1, keep_from=1)
    prompts = [chat.prompt(conversation.messages[:2]) for conversation in some]
    params = SamplingParams(max_new_tokens=6, temperature=1.0)
    together = engine.generate(prompts, params)
    assert engine.generate(prompts[:1], params)[0].ids == together[0].ids
    assert together[0].ids != together[1].ids, "the two prompts differ in their image alone"
