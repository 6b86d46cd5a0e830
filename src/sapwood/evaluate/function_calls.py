"""Scoring of function calls: the right function, with right arguments of the right types.

In: an item whose reference is a call, several calls, or BFCL's possible answers; a completion. Out: a `Score`.
The rules for values follow the Berkeley Function-Calling Leaderboard's checker (gorilla, Apache-2.0) in our own words:
strings are compared without case, spaces and the marks ``, . / - _ * ^``, single quotes count as double ones, types
matter. Beyond it, values are compared at any depth, and 2.0 passes for 2.
Left out on purpose: running the functions, and calls written as Python code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from sapwood.chat import parse_call
from sapwood.errors import DataError
from sapwood.evaluate.scorers import Scorer, guarded, spoken
from sapwood.records import Completion, Item, Score, ToolCall

_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_IGNORED = re.compile(r"[ ,./\-_*^]")


def function_call() -> Scorer:
    """1 where the answer makes exactly the expected calls, in any order; 0 else.

    Calls are those of `Completion.message`, written in the way of the model's template; where it has none, the text itself is
    read as `chat.parse_call` reads it, and then must hold nothing else.
    The reference is `{"name", "arguments"}`, a text that holds calls, BFCL's `{"function": {"argument": [allowed, …]}}`
    where "" among the allowed makes the argument optional, or a list of one of these; an empty list expects no
    call. A reference in another form gives a score without a value.
    """

    def score(item: Item, completion: Completion) -> Score:
        expected = expected_calls(item.reference)
        made = completion.message.tool_calls if completion.message is not None else ()
        calls = list(made) or calls_in(spoken(completion))
        if not expected:
            return Score(float(not calls), None, "expected no call" if calls else "")
        if not calls:
            return Score(0.0, None, "the answer is no function call in JSON")
        answer = _compact([{"name": call.name, "arguments": call.arguments} for call in calls])
        if len(calls) != len(expected):
            return Score(0.0, answer, f"expected {_count(len(expected))}, got {_count(len(calls))}")
        differs = _match_all(calls, expected)
        return Score(float(differs is None), answer, differs or "")

    return guarded(score)


def calls_in(text: str) -> list[ToolCall] | None:
    """The calls that a text consists of, as `chat.parse_call` reads them; a code fence may stand around. None for anything else."""
    fenced = _FENCED.fullmatch(text.strip())
    return parse_call(fenced.group(1) if fenced else text)


def _as_call(value: Any) -> ToolCall | None:
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    return next(iter(parse_call(_compact(value)) or ()), None)


Expected = tuple[str, Mapping[str, Any], bool]
"""(name, arguments, whether each argument is a list of allowed values)"""


def expected_calls(reference: Any) -> list[Expected]:
    """The calls that a reference stands for. Raises `DataError` if it is in none of the forms of `function_call`."""
    if isinstance(reference, str):
        calls = calls_in(reference)
        if not calls:
            raise DataError(f"the reference {reference[:80]!r} is no function call")
        return [(call.name, call.arguments, False) for call in calls]
    found: list[Expected] = []
    for entry in reference if isinstance(reference, list | tuple) else [reference]:
        call = _as_call(entry)
        if call is not None:
            found.append((call.name, call.arguments, False))
        elif isinstance(entry, Mapping) and len(entry) == 1 and isinstance(arguments := next(iter(entry.values())), Mapping):
            found.append((str(next(iter(entry))), arguments, True))
        else:
            raise DataError(f"the reference {_compact(entry)[:80]} is neither a call nor BFCL's possible answers")
    return found


def _match_all(calls: Sequence[ToolCall], expected: Sequence[Expected]) -> str | None:
    """None if each call meets one expected call of its own, else what differs. Tries every assignment that can still work."""
    if not expected:
        return None
    first: str | None = None
    for place, call in enumerate(calls):
        differs = _differs(call, expected[0])
        if differs is None:
            differs = _match_all([*calls[:place], *calls[place + 1 :]], expected[1:])
            if differs is None:
                return None
        first = first or differs
    return first


def _differs(call: ToolCall, expected: Expected) -> str | None:
    name, arguments = call.name, call.arguments
    wanted_name, wanted, choices = expected
    if name != wanted_name:
        return f"function: expected {wanted_name!r}, got {name!r}"
    for argument, value in arguments.items():
        if argument not in wanted:
            return f"argument `{argument}` is unknown; {wanted_name} takes {', '.join(wanted) or 'none'} here"
        allowed = _allowed(wanted[argument]) if choices else [wanted[argument]]
        if not any(_equal(value, option, choices) for option in allowed):
            real = [option for option in allowed if option != ""] or allowed
            return f"argument `{argument}`: expected {' or '.join(map(_compact, real))}, got {_compact(value)}"
    for argument, options in wanted.items():
        if argument not in arguments and not (choices and "" in _allowed(options)):
            return f"argument `{argument}` is missing; expected {_compact(options)}"
    return None


def _allowed(options: Any) -> list[Any]:
    return options if isinstance(options, list) else [options]


def _equal(value: Any, wanted: Any, choices: bool) -> bool:
    """Whether two JSON values are the same; below `choices` a wanted object holds a list of allowed values for each key."""
    if isinstance(value, bool) or isinstance(wanted, bool) or value is None or wanted is None:
        return value is wanted
    if isinstance(value, str) or isinstance(wanted, str):
        return isinstance(value, str) and isinstance(wanted, str) and _plain(value) == _plain(wanted)
    if isinstance(value, Mapping) or isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and isinstance(wanted, Mapping) and _equal_objects(value, wanted, choices)
    if isinstance(value, list) or isinstance(wanted, list):
        if not (isinstance(value, list) and isinstance(wanted, list)) or len(value) != len(wanted):
            return False
        return all(_equal(left, right, choices) for left, right in zip(value, wanted, strict=True))
    return bool(value == wanted)


def _equal_objects(value: Mapping[str, Any], wanted: Mapping[str, Any], choices: bool) -> bool:
    if not choices:
        return value.keys() == wanted.keys() and all(_equal(value[key], wanted[key], False) for key in wanted)
    if not all(key in wanted and any(_equal(entry, option, True) for option in _allowed(wanted[key])) for key, entry in value.items()):
        return False
    return all(key in value or "" in _allowed(wanted[key]) for key in wanted)


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _compact(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def _count(number: int) -> str:
    return "one call" if number == 1 else f"{number} calls"
