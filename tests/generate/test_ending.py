"""How completions end: stop tokens, stop strings, limits, cancelling, failures; and models that cannot share prefixes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import pytest
import torch
import transformers

from generate.prompts_and_engines import Letters, engine, greedy_by_transformers, ids_of, model, nested_prompts, prompts, row_of
from sapwood.errors import ModelError
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.records import Ended, Sampler, SamplingParams

PROMPT = [7, 11, 13]
TOKEN_BYTES = 3 * 2 * 2 * 8 * 4
"""Of the tiny Llama: layers, keys and values, heads, width, fp32."""


def greedy(new: int = 12) -> list[int]:
    return greedy_by_transformers("llama", PROMPT, new)


class Syllables(Letters):
    """Tokens are pieces of a running text, so that a stop string may begin in one and end in another."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"{token:02d}" for token in ids)


def test_no_prompts_no_completions() -> None:
    sampler: Sampler = engine("llama")
    assert sampler.generate([], SamplingParams()) == []


def test_the_stop_token_stays_in_the_ids_and_not_in_the_text() -> None:
    ids = greedy()
    stop = ids[4]
    end = ids.index(stop) + 1
    [found] = engine("llama", Letters([stop])).generate(prompts([PROMPT]), SamplingParams(max_new_tokens=12))
    assert (list(found.ids), found.ended) == (ids[:end], Ended.STOP)
    assert found.text == Letters().decode(ids[: end - 1])
    assert len(found.logprobs) == end


@pytest.mark.parametrize("begin", [0, 1])
def test_a_stop_string_across_tokens_is_cut_from_the_text(begin: int) -> None:
    ids, chat = greedy(), Syllables([])
    text = chat.decode(ids)
    stop = text[6 + begin : 11]  # from within the fourth token, or its beginning, into the sixth
    [found] = engine("llama", chat).generate(prompts([PROMPT]), SamplingParams(max_new_tokens=12, stop=("never", stop)))
    place = text.index(stop)
    assert found.text == text[:place]
    assert found.ended is Ended.STOP
    assert list(found.ids) == ids[: (place + len(stop) + 1) // 2]


def test_of_two_stop_strings_in_one_token_the_first_to_begin_cuts() -> None:
    ids, chat = greedy(), Syllables([])
    text = chat.decode(ids)
    place = next(place for place in range(5, len(text), 2) if text[place] not in text[:place])
    later, earlier = text[place], text[place - 2 : place + 1]
    [found] = engine("llama", chat).generate(prompts([PROMPT]), SamplingParams(max_new_tokens=12, stop=(later, earlier)))
    assert found.text == text[: place - 2]


def test_the_limits_of_new_tokens_and_of_the_context() -> None:
    chat = Letters([], context_length=8)
    asked = prompts([PROMPT, list(range(2, 10)), list(range(2, 9)), []])
    found = engine("llama", chat).generate(asked, SamplingParams(max_new_tokens=12))
    assert [(len(answer.ids), answer.ended) for answer in found] == [
        (5, Ended.LENGTH),
        (0, Ended.ERROR),
        (1, Ended.LENGTH),
        (0, Ended.ERROR),
    ]
    assert [answer.outgrown for answer in found] == [True, True, True, False]
    assert "8 tokens and the model's context holds 8" in (found[1].error or "")
    assert "no tokens" in (found[3].error or "")
    [short] = engine("llama", Letters([])).generate(prompts([PROMPT]), SamplingParams(max_new_tokens=3))
    assert (len(short.ids), short.ended, short.error, short.outgrown) == (3, Ended.LENGTH, None, False)
    [whole] = engine("llama", chat).generate(prompts([PROMPT]), SamplingParams(max_new_tokens=5))
    assert (whole.ended, whole.outgrown) == (Ended.LENGTH, False), "as many as were asked for"


def test_cancelling_keeps_what_was_sampled_and_never_looks_like_an_answer() -> None:
    streamed: list[tuple[int, int]] = []
    found = engine("llama", Letters([]), slots=2).generate(
        prompts([PROMPT, [5, 6], [9]]),
        SamplingParams(max_new_tokens=50),
        on_token=lambda index, token: streamed.append((index, token)),
        cancelled=lambda: len(streamed) >= 9,
    )
    assert [answer.ended for answer in found] == [Ended.ERROR] * 3
    assert list(found[0].ids) == greedy_by_transformers("llama", PROMPT, len(found[0].ids))
    assert sorted(len(answer.ids) for answer in found)[0] == 0, "the third prompt had no slot yet"
    assert all(answer.error == f"Cancelled after {len(answer.ids)} tokens." for answer in found)


def test_streaming_tells_every_token_once() -> None:
    ids = nested_prompts(3)
    streamed: list[list[int]] = [[] for _ in ids]
    found = engine("llama", slots=3).generate(
        prompts(ids), SamplingParams(max_new_tokens=6), on_token=lambda index, token: streamed[index].append(token)
    )
    assert ids_of(found) == streamed


def test_a_token_that_the_model_does_not_have_is_named() -> None:
    with pytest.raises(ModelError, match="Prompt 1 holds token id 97, but the model knows ids below 97"):
        engine("llama").generate(prompts([[3], [4, 97]]), SamplingParams())


def test_logits_that_are_not_finite_are_a_failure_and_no_answer() -> None:
    broken = LanguageModel(transformers.LlamaForCausalLM(model("llama").module.config).eval(), probe=False)
    torch.nn.init.constant_(broken.module.lm_head.weight, float("nan"))
    [found] = Engine(broken, Letters()).generate(prompts([PROMPT]), SamplingParams(temperature=1.0))
    assert (found.ended, found.ids) == (Ended.ERROR, ())
    assert "not finite" in (found.error or "")


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    found = model("llama")
    found.module.train()
    engine("llama").generate(prompts([PROMPT]), SamplingParams(max_new_tokens=2))
    assert found.module.training
    found.module.eval()


def test_a_session_turns_a_model_that_trains_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, turns = model("llama").module, list[bool]()
    train = module.train
    module.train()
    monkeypatch.setattr(module, "train", lambda mode=True: (turns.append(mode), train(mode))[1])  # `eval` calls it too
    params = SamplingParams(max_new_tokens=4)
    with engine("llama").open() as session:
        turns.clear()  # the size of a token's cache is measured when a session opens
        for _ in range(2):
            session.add(prompts([PROMPT])[0], params)
            modes = []
            while not session.idle:
                session.step()
                modes.append(module.training)
            assert modes == [False] * 3 + [True]
        assert turns == [False, True] * 2
        session.add(prompts([PROMPT])[0], params)
        session.step()
    assert turns == [False, True] * 3, "closed before it was at the end"

    def refuse(token: int) -> None:
        raise LookupError

    with engine("llama").open() as session:
        session.add(prompts([PROMPT])[0], params, on_token=refuse)
        with pytest.raises(LookupError):
            session.step()
        assert module.training, "whoever catches it may train on"
    module.eval()


def test_little_memory_means_fewer_at_a_time_and_the_same_tokens(step: str) -> None:
    ids = nested_prompts(5)
    params = SamplingParams(max_new_tokens=6)
    expected = ids_of(engine("llama").generate(prompts(ids), params))
    order: list[int] = []
    longest = max(map(len, ids))
    alone = engine("llama", memory=(longest + row_of(6, step)) * TOKEN_BYTES)
    assert ids_of(alone.generate(prompts(ids), params, on_token=lambda index, _: order.append(index))) == expected
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert step == "static" or changes == len(ids) - 1, "one sequence after the other; those without padding fit beside each other"
    too_little = engine("llama", memory=(longest + row_of(6, step)) * TOKEN_BYTES - 1).generate(prompts(ids), params)
    refused = [answer for answer in too_little if answer.ended is Ended.ERROR]
    assert [len(answer.prompt.ids) for answer in refused] == [longest] * len(refused) != []
    assert "more memory" in (refused[0].error or "")


@pytest.mark.parametrize("kind", ["lfm2", "mamba"])
def test_models_that_cannot_share_prefixes_run_one_prompt_at_a_time(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 0}
    if kind == "lfm2":
        config = transformers.Lfm2Config(
            **small, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"]
        )
    else:
        config = transformers.MambaConfig(**small, intermediate_size=64, state_size=4, time_step_rank=4)
    stock = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in stock.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.25)  # as initialised, a tiny model just repeats its last token
    language_model = LanguageModel(stock, probe=False)
    language_model.shares_prefixes = False
    asked = [PROMPT, [5], [*PROMPT, 17, 19]]
    with caplog.at_level(logging.INFO, logger="sapwood"):
        found = Engine(language_model, Letters()).generate(prompts(asked), SamplingParams(max_new_tokens=8))
    assert "one prompt at a time" in caplog.text
    assert all(len(set(answer.ids)) > 2 for answer in found)
    for ids, answer in zip(asked, found, strict=True):
        so_far = list(ids)
        for token in answer.ids:
            with torch.inference_mode():
                logits = stock(input_ids=torch.tensor([so_far]), use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            so_far.append(token)
