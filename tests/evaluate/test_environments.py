"""Environments: an answer is played to its end, each in its own, and what breaks is told of that answer alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sapwood.errors import ConfigError, DataError
from sapwood.evaluate.environments import InEnvironment, earned, items_by_prompt
from sapwood.evaluate.experiment import bare_prompt
from sapwood.evaluate.items import COPIES
from sapwood.evaluate.rewards import Reward, judge_by
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, SamplingParams


class Higher:
    """Guess a number: the row's reference."""

    def reset(self, item: Item) -> str | None:
        self.wanted = int(item.reference)
        return None if self.wanted == 0 else "Guess."

    def step(self, answer: str) -> tuple[str, float, bool]:
        guess = int(answer)
        return ("higher" if guess < self.wanted else "lower", float(guess == self.wanted) - 0.1, guess == self.wanted)


class Counting:
    """Says 1, 2, 3, … turn by turn."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        said = [str(1 + sum(message.role == "assistant" for message in prompt.messages)) for prompt in prompts]
        return [Completion(prompt, (7,), text, Ended.STOP) for prompt, text in zip(prompts, said, strict=True)]


def played(wanted: Sequence[Any], make: Callable[[], Any] = Higher, turns: int = 3, sampler: Any = None) -> list[Completion]:
    items = [Item(Conversation((Message("user", f"number {place}"),)), one) for place, one in enumerate(wanted)]
    prompts = [Prompt(item.conversation.messages, (place,), "") for place, item in enumerate(items)]
    playing = InEnvironment(sampler or Counting(), bare_prompt, make, items_by_prompt(list(zip(items, prompts, strict=True))), turns)
    return playing.generate(prompts, SamplingParams())


def test_each_answer_plays_in_its_own_until_it_is_over() -> None:
    one, three = played([1, 3])
    assert (one.text, len(one.turns), one.ended) == ("1", 1, Ended.STOP)
    assert one.earned == pytest.approx(0.9)
    assert [turn.text for turn in three.turns] == ["1", "2", "3"]
    assert three.earned == pytest.approx(0.7), "the sum of all turns"
    assert [message.content for message in three.prompt.messages] == ["number 1\nGuess.", "1", "higher", "2", "higher"]
    assert [message.role for message in three.prompt.messages] == ["user", "assistant", "user", "assistant", "user"]
    item = Item(Conversation((Message("user", "?"),)), 3)
    judge = judge_by([Reward("environment", batch=earned)])
    assert [one.total for one in judge([item] * 2, [three, Completion(three.prompt, (), "", Ended.STOP)])] == [pytest.approx(0.7), None]


def test_one_that_goes_on_was_cut_and_keeps_what_it_earned() -> None:
    (answer,) = played([9], turns=2)
    assert (answer.ended, len(answer.before)) == (Ended.LENGTH, 2)
    assert answer.earned == pytest.approx(-0.3), "three turns, each seen by the environment"


class Broken(Higher):
    """Another form than (text, number, bool), by the row."""

    def step(self, answer: str) -> Any:
        return {0: ("a", float("nan"), True), 1: "a", 2: ("a", 1.0, 1), 3: ("a", 10**400, True)}[self.wanted]


def test_what_breaks_fails_its_answer_alone_with_the_reason() -> None:
    good, bad, none = played([1, "no number", 2])
    assert good.ended is Ended.STOP
    assert none.ended is Ended.STOP
    assert bad.ended is Ended.ERROR
    assert bad.earned is None
    assert "could not begin: ValueError" in str(bad.error)
    for answer in played([0, 1, 2, 3], Broken):
        assert "give (text, finite number, True or False)" in str(answer.error)

    class Raises(Higher):
        def step(self, answer: str) -> Any:
            raise RuntimeError("out of cards")

    assert "the environment raised RuntimeError: out of cards" in str(played([1], Raises)[0].error)


def test_two_rows_of_one_prompt_cannot_be_told_apart() -> None:
    items = [Item(Conversation((Message("user", "?"),)), number) for number in (1, 2)]
    same = Prompt(items[0].conversation.messages, (5,), "")
    assert items_by_prompt([(items[0], same), (items[0], same)]) == {(5,): items[0]}
    with pytest.raises(DataError, match="same prompt"):
        items_by_prompt([(items[0], same), (items[1], same)])
    by_column = [Item(items[0].conversation, None, meta={"secret": number, COPIES: number}) for number in (3, 7)]
    with pytest.raises(DataError, match="same prompt"):
        items_by_prompt([(item, same) for item in by_column])
    assert items_by_prompt([(item, same) for item in (by_column[0], Item(items[0].conversation, None, meta={"secret": 3}))])
    with pytest.raises(ConfigError, match="turns is 0"):
        InEnvironment(Counting(), bare_prompt, Higher, {}, 0)


class Short(Counting):
    """Its context holds so many messages."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        found = super().generate(prompts, params)
        full = [len(prompt.messages) >= 5 for prompt in prompts]
        return [
            Completion(one.prompt, (), "", Ended.ERROR, error="full", outgrown=True) if too_long else one
            for one, too_long in zip(found, full, strict=True)
        ]


def test_one_that_outgrows_the_context_keeps_what_it_earned() -> None:
    one, nine = played([1, 9], turns=6, sampler=Short())
    assert one.ended is Ended.STOP
    assert (nine.ended, nine.outgrown, nine.error) == (Ended.LENGTH, True, None)
    assert [turn.text for turn in nine.turns] == ["1", "2"]
    assert nine.earned == pytest.approx(-0.2)
    (rewarded,) = judge_by([Reward("environment", batch=earned)])([Item(Conversation((Message("user", "?"),)), 9)], [nine])
    assert rewarded.total == pytest.approx(-0.2), "a reward below 0 is one: to leave it out would favour those who never get there"
