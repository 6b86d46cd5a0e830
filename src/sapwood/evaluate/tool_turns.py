"""Items whose answer takes tools: the model calls, the tool answers, the model goes on, until it speaks to the user.

In: any `Sampler`, a function that renders a conversation, and tools: Python functions, or results written down in the item.
Out: a `Sampler` that gives the last completion, so that any scorer reads the final answer; the turns between are in its prompt.
Left out on purpose: running tools that a model names and nobody handed in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from sapwood.errors import ConfigError, SapwoodError
from sapwood.records import Completion, Conversation, Ended, Message, Prompt, Sampler, SamplingParams, ToolCall
from sapwood.records.protocols import OnToken

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
    """Most rounds of calls; an answer that still calls then is a recorded failure, not a wrong answer."""

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
        open_prompts = dict(enumerate(prompts))
        done: dict[int, Completion] = {}
        for turn in range(self.turns + 1):
            places = list(open_prompts)
            answers = self.sampler.generate(
                list(open_prompts.values()), params, on_token=_renumbered(on_token, places), cancelled=cancelled
            )
            for place, completion in zip(places, answers, strict=True):
                calls = completion.message.tool_calls if completion.message is not None else ()
                if not calls or completion.ended is not Ended.STOP:
                    done[place] = completion
                    del open_prompts[place]
                elif turn == self.turns:
                    done[place] = dataclasses.replace(completion, ended=Ended.ERROR, error=f"it still called after {turn} rounds of calls")
                    del open_prompts[place]
                else:
                    self._go_on(place, completion, calls, open_prompts, done)
            if not open_prompts or (cancelled is not None and cancelled()):
                break
        for place, prompt in open_prompts.items():
            done[place] = Completion(prompt, (), "", Ended.ERROR, error="stopped between two rounds of calls")
        return [done[place] for place in range(len(prompts))]

    def _go_on(
        self,
        place: int,
        completion: Completion,
        calls: Sequence[ToolCall],
        open_prompts: dict[int, Prompt],
        done: dict[int, Completion],
    ) -> None:
        """The next prompt: all before, the calls, and their results in order."""
        before = open_prompts.pop(place)
        assert completion.message is not None
        results = [Message("tool", result_of(call, self.tools), tool_call_id=call.id, name=call.name) for call in calls]
        messages = (*before.messages, completion.message, *results)
        try:
            open_prompts[place] = self.prompt(Conversation(messages, before.tools, before.template_arguments))
        except SapwoodError as error:
            done[place] = dataclasses.replace(completion, ended=Ended.ERROR, error=f"its call could not be answered: {error}")


def result_of(call: ToolCall, tools: Mapping[str, Tool]) -> str:
    """What the tool says, as text; an unknown tool and one that raises are told to the model in words."""
    tool = tools.get(call.name)
    if tool is None:
        return f"Error: there is no tool {call.name!r}. Tools: {', '.join(sorted(tools)) or 'none'}."
    try:
        given = tool(**call.arguments)
    except Exception as error:  # noqa: BLE001  a tool that fails is part of the test
        return f"Error: {type(error).__name__}: {error}"
    return given if isinstance(given, str) else orjson.dumps(given, default=str).decode()


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
