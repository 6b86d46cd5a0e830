"""Items whose answer takes tools: the model calls, the tool answers, the model goes on, until it speaks to the user.

In: any `Sampler`, a function that renders a conversation, and tools: Python functions, or results written down in the item.
Out: a `Sampler` that gives the last completion, so that any scorer reads the final answer; the turns between are in its prompt, and the
completions that they were in `before`, so that training learns from what was sampled and from nothing that a tool said.
Left out on purpose: running tools that a model names and nobody handed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from sapwood.errors import ConfigError, SapwoodError
from sapwood.records import Completion, Conversation, Ended, Message, Prompt, Sampler, SamplingParams, ToolCall
from sapwood.records.protocols import OnToken, release

Tool = Callable[..., Any]
"""A Python function, called with the call's arguments by name; its result is shown to the model as text or JSON."""

PromptOf = Callable[[Conversation], Prompt]


@dataclasses.dataclass(frozen=True)
class WithTools:
    """A `Sampler` around another one that plays the calls out, all prompts of a call side by side."""

    sampler: Sampler
    prompt: PromptOf
    tools: Mapping[str, Tool]
    turns: int = 8
    """Most rounds of calls; an answer that still calls then was cut, and is judged as far as it came."""

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ConfigError(f"turns is {self.turns}; give at least 1 round of calls.")

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        on_token: OnToken | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """As of `Sampler`. A tool that raises tells the model so, as it would in use."""
        return Playing(self.prompt, self.turns).play(self.sampler, prompts, params, self._results, on_token=on_token, cancelled=cancelled)

    def release(self) -> None:
        """The sampler's memory is wanted for something else."""
        release(self.sampler)

    def _results(self, place: int, completion: Completion) -> Sequence[Message] | None:
        calls = completion.message.tool_calls if completion.message is not None else ()
        if calls and len(completion.before) == self.turns:
            return []  # nobody would read what the tools said
        return [Message("tool", result_of(call, self.tools), tool_call_id=call.id, name=call.name) for call in calls] or None


Reply = Callable[[int, Completion], Sequence[Message] | None]
"""What comes back to the answer to prompt i: messages, or None where it was the last turn. A `SapwoodError` ends that answer alone."""


@dataclasses.dataclass(frozen=True)
class Playing:
    """Turns of a model and of what answers it, all prompts side by side.

    An answer that would have one more turn than there may be, or whose turns and replies fill the context, was cut: it is what its last
    turn was. To leave it out would favour a model that never comes to an end.
    """

    prompt: PromptOf
    turns: int
    """Most replies to one answer."""

    def play(
        self,
        sampler: Sampler,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        reply: Reply,
        *,
        on_token: OnToken | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """The last completion of each prompt, those before it in `before`."""
        going = dict(enumerate(prompts))
        before: dict[int, tuple[Completion, ...]] = {}
        done: dict[int, Completion] = {}
        for turn in range(self.turns + 1):
            places = list(going)
            answers = sampler.generate(
                list(going.values()), of_turn(params, turn), on_token=_renumbered(on_token, places), cancelled=cancelled
            )
            for place, last in zip(places, answers, strict=True):
                completion = dataclasses.replace(last, before=before.get(place, ()))
                prompt = going.pop(place)
                if completion.ended is Ended.ERROR and completion.outgrown and completion.before:
                    done[place] = dataclasses.replace(completion.before[-1], ended=Ended.LENGTH, outgrown=True)
                    continue
                try:
                    said = reply(place, completion) if completion.ended is Ended.STOP else None
                    if said is None:
                        done[place] = completion
                    elif turn == self.turns:
                        done[place] = dataclasses.replace(completion, ended=Ended.LENGTH)
                    else:
                        before[place] = completion.turns
                        going[place] = self._next(prompt, completion, said)
                except SapwoodError as error:
                    done[place] = dataclasses.replace(completion, ended=Ended.ERROR, error=f"it could not be answered: {error}")
            if not going or (cancelled is not None and cancelled()):
                break
        for place, prompt in going.items():
            done[place] = Completion(prompt, (), "", Ended.ERROR, error="stopped between two turns", before=before.get(place, ()))
        return [done[place] for place in range(len(prompts))]

    def _next(self, prompt: Prompt, completion: Completion, said: Sequence[Message]) -> Prompt:
        """All before, what the model said, and what came back."""
        spoken = completion.message or Message("assistant", completion.text)
        return self.prompt(Conversation((*prompt.messages, spoken, *said), prompt.tools, prompt.template_arguments))


def of_turn(params: SamplingParams, turn: int) -> SamplingParams:
    """The same with random numbers of its own: those of the first turn must not come again in the next."""
    if not turn:
        return params
    drawn = hashlib.blake2b(repr((params.seed, turn)).encode(), digest_size=8).digest()
    return dataclasses.replace(params, seed=int.from_bytes(drawn) >> 1)


def result_of(call: ToolCall, tools: Mapping[str, Tool]) -> str:
    """What the tool says, as text; an unknown tool and one that raises are told to the model in words."""
    tool = tools.get(call.name)
    if tool is None:
        return f"Error: there is no tool {call.name!r}. Tools: {', '.join(sorted(tools)) or 'none'}."
    try:
        given = tool(**call.arguments)
    except Exception as error:  # noqa: BLE001  a tool that fails is part of the test
        return f"Error: {type(error).__name__}: {error}"
    if isinstance(given, str):
        return given
    try:
        return orjson.dumps(given, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # integers beyond 64 bits, say
        return str(given)


def _renumbered(on_token: OnToken | None, places: Sequence[int]) -> OnToken | None:
    return None if on_token is None else lambda index, token: on_token(places[index], token)


def scripted(results: Sequence[Mapping[str, Any]]) -> dict[str, Tool]:
    """Tools whose results were written down: `[{"name", "arguments"?, "result"}, …]`, as in an item's `meta`.

    Without `arguments` an entry answers every call of its name. A call that no entry fits raises, so the model is told.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for entry in results:
        if not isinstance(entry.get("name"), str) or "result" not in entry:
            raise ConfigError(f"A scripted tool is {dict(entry)!r}; give name, result, and arguments where they matter.")
        by_name.setdefault(entry["name"], []).append(entry)

    def tool(name: str) -> Tool:
        def answer(**arguments: Any) -> Any:
            for entry in by_name[name]:
                if "arguments" not in entry or entry["arguments"] == arguments:
                    return entry["result"]
            raise LookupError(f"no result for {arguments}")

        return answer

    return {name: tool(name) for name in by_name}
