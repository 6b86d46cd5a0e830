"""Answers that take tools: call, result, final answer; with a scripted model, a real template and real functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sapwood.errors import ConfigError
from sapwood.evaluate import exact
from sapwood.evaluate.experiment import bare_prompt
from sapwood.evaluate.tool_turns import WithTools, result_of, scripted
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, SamplingParams, ToolCall


class Model:
    """Answers by a function of the messages; remembers what it was asked."""

    def __init__(self, answer: Callable[[Sequence[Message]], Message]) -> None:
        self.answer = answer
        self.asked: list[list[str]] = []
        self.seeds: list[int] = []

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, on_token: object = None, cancelled: object = None
    ) -> list[Completion]:
        self.seeds.append(params.seed)
        self.asked.append([prompt.messages[-1].content for prompt in prompts])
        messages = [self.answer(prompt.messages) for prompt in prompts]
        return [
            Completion(prompt, (), message.content, Ended.STOP, message=message) for prompt, message in zip(prompts, messages, strict=True)
        ]


def adds(messages: Sequence[Message]) -> Message:
    """Calls `add` for a question with two numbers, says the result, and answers other questions at once."""
    last = messages[-1]
    if last.role == "tool":
        return Message("assistant", f"It is {last.content}.")
    numbers = [int(word) for word in last.content.split() if word.isdigit()]
    if len(numbers) < 2:
        return Message("assistant", "Hello.")
    return Message("assistant", "", tool_calls=(ToolCall("add", {"a": numbers[0], "b": numbers[1]}, "c1"),))


def ask(*texts: str) -> list[Prompt]:
    return [bare_prompt(Conversation((Message("user", text),))) for text in texts]


def test_calls_are_played_out_side_by_side() -> None:
    model = Model(adds)
    sampler = WithTools(model, bare_prompt, {"add": lambda a, b: a + b})
    answers = sampler.generate(ask("3 plus 4", "hi", "1 plus 1"), SamplingParams())
    assert [answer.text for answer in answers] == ["It is 7.", "Hello.", "It is 2."]
    assert model.asked == [["3 plus 4", "hi", "1 plus 1"], ["7", "2"]], "two rounds, the open ones together"
    assert [message.role for message in answers[0].prompt.messages] == ["user", "assistant", "tool"]
    assert answers[0].prompt.messages[-1].tool_call_id == "c1"
    assert [turn.prompt.messages[-1].content for turn in answers[0].turns] == ["3 plus 4", "7"], "training sees each turn of the model"
    assert answers[1].before == ()
    item = Item(Conversation((Message("user", "3 plus 4"),)), "It is 7.")
    assert exact()(item, answers[0]).value == 1


def test_each_round_draws_from_random_numbers_of_its_own() -> None:
    seeds = []
    for seed in (0, 0, 1):
        model = Model(adds)
        WithTools(model, bare_prompt, {"add": lambda a, b: a + b}).generate(ask("3 plus 4"), SamplingParams(seed=seed))
        seeds.append(model.seeds)
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 4
    assert seeds[0][0] == 0


def test_scripted_results() -> None:
    tools = scripted([{"name": "add", "arguments": {"a": 3, "b": 4}, "result": {"sum": 7}}, {"name": "now", "result": "noon"}])
    sampler = WithTools(Model(adds), bare_prompt, tools)
    answers = sampler.generate(ask("3 plus 4", "1 plus 1"), SamplingParams())
    assert answers[0].text == 'It is {"sum":7}.'
    assert answers[1].text == "It is Error: LookupError: no result for {'a': 1, 'b': 1}."
    with pytest.raises(ConfigError, match="name, result"):
        scripted([{"name": "x"}])


@pytest.mark.parametrize(("given", "told"), [(2**70, "1180591620717411303424"), ({1: "a"}, '{"1":"a"}'), ({"deep": 2**70}, "deep")])
def test_a_result_that_is_no_json_is_told_as_text(given: Any, told: str) -> None:
    assert told in result_of(ToolCall("add", {}), {"add": lambda: given})


def test_tools_that_fail_and_models_that_never_stop() -> None:
    assert (
        "ZeroDivisionError"
        in WithTools(Model(adds), bare_prompt, {"add": lambda a, b: a // 0}).generate(ask("1 2"), SamplingParams())[0].text
    )
    assert "no tool 'add'" in WithTools(Model(adds), bare_prompt, {}).generate(ask("1 2"), SamplingParams())[0].text
    endless = Model(lambda messages: Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1, "b": 1}),)))
    called: list[int] = []
    cut = WithTools(endless, bare_prompt, {"add": lambda a, b: called.append(a)}, turns=2).generate(ask("go"), SamplingParams())[0]
    assert (cut.ended, cut.error, cut.outgrown) == (Ended.LENGTH, None, False)
    assert len(endless.asked) == 3
    assert len(cut.before) == 2
    assert len(called) == 2, "nobody would read the third result"
    assert exact()(Item(Conversation((Message("user", "go"),)), "0"), cut).value == 0, "who never comes to an answer has not given it"
    with pytest.raises(ConfigError, match="turns is 0"):
        WithTools(endless, bare_prompt, {}, turns=0)


class Bounded(Model):
    """A model whose context holds so many words: like the engine, it fails where a prompt leaves no room for one more."""

    def __init__(self, answer: Callable[[Sequence[Message]], Message], context: int) -> None:
        super().__init__(answer)
        self.context = context

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        found = super().generate(prompts, params)
        return [
            dataclasses.replace(one, text="", ended=Ended.ERROR, error="the prompt is too long", outgrown=True, message=None)
            if words_of(one.prompt) >= self.context
            else one
            for one in found
        ]


def words_of(prompt: Prompt) -> int:
    return sum(len(message.content.split()) + len(message.tool_calls) for message in prompt.messages)


def rambles(messages: Sequence[Message]) -> Message:
    """Calls again and again; each question has its own number of calls before its answer."""
    calls = sum(message.role == "tool" for message in messages)
    if calls == int(messages[0].content.split()[0]):
        return Message("assistant", "done")
    return Message("assistant", "hm", tool_calls=(ToolCall("look", {}, f"c{calls}"),))


@pytest.mark.parametrize("context", range(1, 26))
def test_an_answer_that_outgrows_the_context_is_kept_as_far_as_it_came_and_judged(context: int) -> None:
    """Each call and its result take 5 words of the context. Whoever fits answers; whoever does not was cut; nobody is left out."""
    sampler = WithTools(Bounded(rambles, context), bare_prompt, {"look": lambda: "one two three"}, turns=4)
    asked = [f"{calls} calls" for calls in range(7)]
    for calls, answer in enumerate(sampler.generate(ask(*asked), SamplingParams())):
        score = exact()(Item(Conversation((Message("user", asked[calls]),)), "done"), answer).value
        turns = min(len([turn for turn in range(calls + 1) if 2 + 5 * turn < context]), 5)
        if not turns:
            assert (answer.ended, answer.before, score) == (Ended.ERROR, (), None), "a prompt that never fitted is no answer"
            continue
        assert len(answer.turns) == turns
        assert all(words_of(turn.prompt) == 2 + 5 * place for place, turn in enumerate(answer.turns))
        whole = turns == calls + 1
        assert score == float(whole)
        assert answer.ended is (Ended.STOP if whole else Ended.LENGTH)
        assert answer.error is None
        assert answer.outgrown is (not whole and turns < 5), "the limit of turns is another one"
