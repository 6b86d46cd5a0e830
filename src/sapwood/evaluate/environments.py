"""Environments: something that answers each turn of the model, says when it is over, and what it was worth.

In: any `Sampler`, a function that renders a conversation, and a maker of environments (a class of the user's own file, or any function).
Out: a `Sampler` that gives the last completion, with the turns before it in `before` and the sum of what was earned; and the reward that
reads it. Each answer plays in an environment of its own, all side by side.
Left out on purpose: observations that are no text, and environments that run in another process: code of the user's own runs here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sapwood.errors import ConfigError, DataError
from sapwood.evaluate.items import COPIES
from sapwood.evaluate.tool_turns import Playing, PromptOf
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, Sampler, SamplingParams, Score
from sapwood.records.protocols import OnToken, release

LARGEST = 1e300
"""Of what a step may give: beyond it Python's integers are no floating-point numbers any more."""


class Environment(Protocol):
    """What a model plays with for one answer."""

    def reset(self, item: Item) -> str | None:
        """Begin with this row. Words to stand behind its question, or None."""
        ...

    def step(self, answer: str) -> tuple[str, float, bool]:
        """One turn of the model: what is said back, what the turn was worth, and whether it is over."""
        ...


@dataclasses.dataclass(frozen=True)
class InEnvironment:
    """A `Sampler` around another one: each answer is played to its end."""

    sampler: Sampler
    prompt: PromptOf
    make: Callable[[], Environment]
    items: Mapping[tuple[int, ...], Item]
    """The row of each prompt, by the prompt's ids."""
    turns: int = 8
    """Most replies to one answer; one that goes on then was cut, and keeps what it has earned."""

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ConfigError(f"turns is {self.turns}; give at least 1 reply.")

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        on_token: OnToken | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """As of `Sampler`. An environment that raises, or answers in another form, fails its answer alone, with the reason."""
        worlds: list[Environment | str] = []
        begun: list[Prompt] = []
        for prompt in prompts:
            world, first = self._begun(prompt)
            worlds.append(world)
            begun.append(first)
        earned = [0.0] * len(prompts)

        def reply(place: int, completion: Completion) -> Sequence[Message] | None:
            world = worlds[place]
            if isinstance(world, str):
                raise DataError(world)
            said, value, over = _stepped(world, completion)
            earned[place] += value
            return None if over else [Message("user", said)]

        answers = Playing(self.prompt, self.turns).play(self.sampler, begun, params, reply, on_token=on_token, cancelled=cancelled)
        return [
            answer if answer.ended is Ended.ERROR else dataclasses.replace(answer, earned=earned[place])
            for place, answer in enumerate(answers)
        ]

    def release(self) -> None:
        """The sampler's memory is wanted for something else."""
        release(self.sampler)

    def _begun(self, prompt: Prompt) -> tuple[Environment | str, Prompt]:
        """An environment that has begun, or why there is none, and the prompt with its first words."""
        try:
            world = self.make()
            words: object = world.reset(self.items[prompt.ids])
        except Exception as error:  # noqa: BLE001  code of the user's own must not stop a run of hours
            return f"the environment could not begin: {type(error).__name__}: {error}", prompt
        if words is None:
            return world, prompt
        if not isinstance(words, str):
            return f"the environment's reset gave {type(words).__name__}; give a text or None", prompt
        return world, self.prompt(_with_words(prompt, words))


def _with_words(prompt: Prompt, words: str) -> Conversation:
    """The conversation with words behind its question."""
    *earlier, last = prompt.messages
    if last.role != "user":
        return Conversation((*prompt.messages, Message("user", words)), prompt.tools, prompt.template_arguments)
    joined = dataclasses.replace(last, content=f"{last.content}\n{words}")
    return Conversation((*earlier, joined), prompt.tools, prompt.template_arguments)


def _stepped(world: Environment, completion: Completion) -> tuple[str, float, bool]:
    """One step, checked. Raises `DataError` for what it raises, and for another form than (text, number, bool)."""
    try:
        found: object = world.step(completion.text)
    except Exception as error:
        raise DataError(f"the environment raised {type(error).__name__}: {error}") from error
    match found:
        case (str() as said, int() | float() as value, bool() as over) if -LARGEST <= value <= LARGEST:
            return said, float(value), over
    raise DataError(f"the environment's step gave {str(found)[:80]!r}; give (text, finite number, True or False)")


def earned(items: Sequence[Item], completions: Sequence[Completion]) -> list[Score]:
    """What the environment gave for all turns of each answer, as a `Reward.batch`: any number, for steps may cost something. Nothing is
    judged where none played."""
    return [Score(one.earned, None, "" if one.earned is not None else "no environment played") for one in completions]


def _columns(item: Item) -> dict[str, Any]:
    """What else stood in the row: an environment may read it."""
    return {name: value for name, value in item.meta.items() if name != COPIES}


def items_by_prompt(asked: Sequence[tuple[Item, Prompt]]) -> dict[tuple[int, ...], Item]:
    """The row of each prompt. Raises `DataError` for two rows with one prompt that differ: an environment could not tell them apart."""
    found: dict[tuple[int, ...], Item] = {}
    for item, prompt in asked:
        other = found.setdefault(prompt.ids, item)
        if (other.id, _columns(other)) != (item.id, _columns(item)):
            raise DataError(
                f"Two rows have the same prompt and differ in something else ({other.conversation.where}, {item.conversation.where}): an "
                "environment begins with its prompt's row. Say in the prompt what makes them differ, or leave one out."
            )
    return found
