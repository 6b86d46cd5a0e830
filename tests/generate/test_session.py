"""A session fed over time: an answer is what it would be alone, whenever it comes, whatever is cancelled, however little the memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generate.prompts_and_engines import Letters, engine, greedy_by_transformers, ids_of, model, nested_prompts, prompts, row_of
from sapwood.generate import Answer, Engine, Session
from sapwood.model import LanguageModel
from sapwood.records import Ended, SamplingParams
from tiny.models import tiny_model

TOKEN_BYTES = 3 * 2 * 2 * 8 * 4


def finish(session: Session) -> list[Answer]:
    over: list[Answer] = []
    for _ in range(10_000):
        if session.idle:
            return over
        over += session.step()
    raise AssertionError("it never ends")


SETTINGS = [
    SamplingParams(max_new_tokens=7),
    SamplingParams(max_new_tokens=4, temperature=1.0, seed=1),
    SamplingParams(max_new_tokens=9, temperature=0.7, top_k=5, seed=2),
    SamplingParams(max_new_tokens=6, temperature=1.3, top_p=0.8, min_p=0.01, seed=3),
    SamplingParams(max_new_tokens=8, repetition_penalty=1.4),
    SamplingParams(max_new_tokens=5, temperature=1.0, presence_penalty=0.7, frequency_penalty=-0.3, seed=4),
]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_those_that_waited_together_see_their_own_beginnings_alone(name: str) -> None:
    """Two below one beginning came at different times, and one below another between them: one prefill computes all three."""
    one, other = list(range(10, 34)), list(range(40, 64))
    asked = [[*one, 70, 71, 72], [*other, 73, 74], [*one, 75, 76, 77, 78]]
    params = SamplingParams(max_new_tokens=8)
    endless = Letters(stop_ids=())
    expected = [engine(name, endless, slots=1).generate(prompts([ids]), params)[0] for ids in asked]
    tried = engine(name, endless, slots=8, min_saving=1)
    with tried.open() as session:
        for first in range(7):  # too few slots are free for a prefill to pay, until these end
            session.add(prompts([[80 + first, 6, 7]])[0], SamplingParams(max_new_tokens=6, temperature=1.0, seed=first))
        session.step()
        answers = [session.add(prompt, params) for prompt in prompts(asked[:2])]
        session.step()
        answers.append(session.add(prompts(asked[2:])[0], params))
        finish(session)
    assert [list(answer.ids) for answer in answers] == [list(completion.ids) for completion in expected]
    for answer, completion in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.completion().logprobs, completion.logprobs, rtol=0, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 6),
    budget=st.sampled_from([3, 16, 40]),
    keep_from=st.sampled_from([1, 12, 10_000]),
    min_saving=st.sampled_from([1, 6, 16]),
    memory=st.sampled_from([None, 200 * TOKEN_BYTES, 500 * TOKEN_BYTES]),
    name=st.sampled_from(["llama", "mistral", "gemma3"]),
)
def test_answers_do_not_depend_on_when_they_come_and_what_runs_beside_them(
    seed: int, slots: int, budget: int, keep_from: int, min_saving: int, memory: int | None, name: str
) -> None:
    rng = np.random.default_rng(seed)
    ids = nested_prompts(seed)[1:8] + nested_prompts(seed + 1)[:2]
    params = [SETTINGS[rng.integers(len(SETTINGS))] for _ in ids]
    alone = engine(name, slots=1, min_saving=10**6)
    expected = [alone.generate(prompts([one]), wanted)[0] for one, wanted in zip(ids, params, strict=True)]
    tried = engine(name, slots=slots, budget=budget, keep_from=keep_from, min_saving=min_saving, memory=memory)
    over: list[Answer] = []
    with tried.open() as session:
        handles = []
        for prompt, wanted in zip(prompts(ids), params, strict=True):
            handles.append(session.add(prompt, wanted))
            for _ in range(rng.integers(0, 4)):
                over += session.step()
            if rng.random() < 0.2:
                handles[rng.integers(len(handles))].cancel()
        over += finish(session)
    assert sorted(map(id, over)) == sorted(map(id, handles)), "each ends once"
    for handle, completion in zip(handles, expected, strict=True):
        if handle.ended is Ended.ERROR:
            assert list(completion.ids)[: len(handle.ids)] == handle.ids
        else:
            assert handle.ids == list(completion.ids)
            np.testing.assert_allclose(handle.logprobs, completion.logprobs, atol=5e-5)
    tried.forget()
    assert tried._tree.held() == 0
    assert list(tried._tree._nodes()) == list(tried._tree._roots.values()), "nothing is left behind"


def counted(name: str, **schedule: Any) -> tuple[Engine, list[int]]:
    """An engine, and the number of tokens of each forward."""
    seen: list[int] = []
    original = model(name)

    class Counting:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(original, attribute)

        def hidden(self, tokens_T: Any, *rest: Any) -> torch.Tensor:
            seen.append(len(tokens_T))
            return original.hidden(tokens_T, *rest)

    counting: Any = Counting()
    made = Engine(counting, Letters(), **schedule)
    made.generate(prompts([[3]]), SamplingParams(max_new_tokens=1))  # asks what one token's cache looks like
    seen.clear()
    return made, seen


def test_a_beginning_is_computed_once_over_time() -> None:
    shared = list(range(2, 42))
    made, seen = counted("llama")
    once = SamplingParams(max_new_tokens=1)
    made.generate(prompts([[*shared, 50, 51]]), once)
    made.generate(prompts([[*shared, 60, 61, 62]]), once)
    made.generate(prompts([[*shared, 60, 61, 62]]), once)
    made.generate(prompts([shared]), once)
    made.generate(prompts([shared]), once)
    assert seen == [42, 3, 1], "a prompt that ends within another costs one token, and one that was there costs none"


def test_samples_of_one_prompt_share_its_cache_and_draw_apart() -> None:
    made, seen = counted("llama", keep_from=1)
    ids = nested_prompts(1)[0]
    params = SamplingParams(max_new_tokens=5, temperature=1.5, seed=9)
    with made.open() as session:
        answers = [session.add(prompts([ids])[0], params, index=index) for index in range(4)]
        finish(session)
    assert seen == [len(ids), 4, 4, 4, 4]
    assert len({tuple(answer.ids) for answer in answers}) == 4
    assert answers[2].ids == list(engine("llama").generate(prompts([ids] * 4), params)[2].ids)


def test_what_was_used_longest_ago_is_dropped_first(step: str) -> None:
    made, seen = counted("llama", memory=(3 * 30 + row_of(1, step)) * TOKEN_BYTES)
    once = SamplingParams(max_new_tokens=1)
    first, second, third, fourth = ([start, *range(40, 69)] for start in (12, 13, 14, 15))
    for ids in (first, second, third, first, fourth, first, third):
        made.generate(prompts([ids]), once)
    assert seen == [30, 30, 30, 30], "the fourth took the place of the second"
    made.generate(prompts([second]), once)
    assert seen[4:] == [30]


def test_training_between_two_calls_is_never_missed() -> None:
    tuned = LanguageModel(tiny_model("llama", torch.float32))
    kept, ids, params = Engine(tuned, Letters()), nested_prompts(2), SamplingParams(max_new_tokens=8)
    before = ids_of(kept.generate(prompts(ids), params))
    optimizer = torch.optim.AdamW(tuned.module.parameters(), lr=0.05)
    (-tuned.module(input_ids=torch.tensor([ids[0]]), forest=_causal()).logits.log_softmax(-1)[..., 5].sum()).backward()
    optimizer.step()
    after = ids_of(kept.generate(prompts(ids), params))
    assert after == ids_of(Engine(tuned, Letters()).generate(prompts(ids), params))
    assert after != before
    with kept.open() as session:
        session.add(prompts([ids[0]])[0], params)
        session.step()
        with torch.no_grad():
            tuned.module.lm_head.weight.mul_(-1)
        finish(session)  # the answer that ran is nobody's; the next must be right
    assert ids_of(kept.generate(prompts(ids), params)) == ids_of(Engine(tuned, Letters()).generate(prompts(ids), params))


def _causal() -> Any:
    class Causal:
        def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Any) -> torch.Tensor:
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            return out.transpose(1, 2)

    return Causal()


def test_each_has_its_own_limits_and_stops() -> None:
    ids = [7, 11, 13]
    greedy = greedy_by_transformers("llama", ids, 10)
    (prompt,) = prompts([ids])
    with engine("llama", Letters([])).open() as session:
        short = session.add(prompt, SamplingParams(max_new_tokens=2))
        stopped = session.add(prompt, SamplingParams(max_new_tokens=10, stop_ids=(greedy[4],)))
        worded = session.add(prompt, SamplingParams(max_new_tokens=10, stop=(f"t{greedy[5]}",)))
        empty = session.add(replace(prompt, ids=()), SamplingParams())
        over = finish(session)
    assert over[0] is empty
    end = greedy.index(greedy[4])
    assert (short.ids, short.ended) == (greedy[:2], Ended.LENGTH)
    assert (stopped.ids, stopped.ended) == (greedy[: end + 1], Ended.STOP)
    assert stopped.completion().text == Letters().decode(greedy[:end])
    assert (worded.ids, worded.ended) == (greedy[: greedy.index(greedy[5]) + 1], Ended.STOP)
    assert empty.ended is Ended.ERROR


def test_what_a_callback_raises_or_cancels_harms_nobody_else() -> None:
    ids = nested_prompts(7)[:4]
    params = SamplingParams(max_new_tokens=6)
    expected = ids_of(engine("llama").generate(prompts(ids), params))
    with engine("llama").open() as session:
        answers: list[Answer] = []

        def complain(token: int) -> None:
            if len(answers[1].ids) == 2:
                answers[1].cancel()
                raise BrokenPipeError("the client has left")

        answers += [session.add(prompt, params, on_token=complain if place == 1 else None) for place, prompt in enumerate(prompts(ids))]
        raised = 0
        while not session.idle:
            try:
                session.step()
            except BrokenPipeError:
                raised += 1
    assert raised == 1
    assert [answer.ids for answer in answers] == [expected[0], expected[1][:2], *expected[2:]]
    assert answers[1].completion().error == "Cancelled after 2 tokens."


def test_a_long_prompt_lets_others_go_on_between_its_forwards() -> None:
    with engine("llama", budget=10).open() as session:
        first = session.add(prompts([[5, 6]])[0], SamplingParams(max_new_tokens=12))
        session.step()
        session.add(prompts([list(range(2, 52))])[0], SamplingParams(max_new_tokens=1))
        lengths = []
        for _ in range(8):
            session.step()
            lengths.append(len(first.ids))
        finish(session)
    assert lengths == [1, 2, 2, 3, 3, 4, 4, 5]


def test_closing_cancels_what_has_not_ended() -> None:
    made = engine("llama", slots=1)
    with made.open() as session:
        answers = [session.add(prompt, SamplingParams(max_new_tokens=50)) for prompt in prompts([[5, 6], [7, 8]])]
        session.step()
        assert session.load == (1, 1)
        answers.append(session.add(prompts([[9]])[0], SamplingParams()))
    assert [answer.ended for answer in answers] == [Ended.ERROR] * 3
    assert not made._tree.pinned
    with pytest.raises(AssertionError, match="cancel it first"):
        Answer(prompts([[3]])[0], SamplingParams(), Letters()).completion()
