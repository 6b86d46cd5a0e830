"""Do calls fit the functions they call, and do results answer calls? Sentences for people; nothing is changed.

In: messages and tools (OpenAI's form, or bare name/description/parameters). Out: `Mismatch`es: a kind to count by,
and a sentence with the path to the argument. Schemas are read as JSON Schema (draft 2020-12); nothing is fetched for a
`$ref` that leaves the schema.
Left out on purpose: `format` (whether a text is an address or a date), and defaults, which are the function's to fill in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema
import referencing
import referencing.exceptions

from sapwood.config import did_you_mean
from sapwood.records import Message, ToolCall

Tools = Sequence[Mapping[str, Any]]

_NOTHING_FETCHED: referencing.Registry[Any] = referencing.Registry()
_OPENING = ("additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "unevaluatedProperties")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What does not fit: `kind` to count by, `sentence` for people, and the message, from 0."""

    kind: str
    sentence: str
    index: int = 0


def validate_calls(message: Message, tools: Tools) -> list[str]:
    """What is wrong with the calls of one message: unknown functions, missing, unknown and wrongly typed arguments."""
    return [sentence for _, sentence in _of_calls(message, tools)]


def _validate_schemas(tools: Tools) -> list[str]:
    """What is wrong with the tools themselves: names twice, parameters that are no JSON Schema."""
    found: list[str] = []
    names: set[str] = set()
    for tool in tools:
        function = _function(tool)
        name = str(function.get("name"))
        if name in names:
            found.append(f"the function {name!r} is offered twice")
        names.add(name)
        if isinstance(checker := _checker(_dumped(function.get("parameters"))), str):
            found.append(f"the parameters of {name!r} are no JSON Schema: {checker}")
    return found


def check_conversation(messages: Sequence[Message], tools: Tools) -> list[Mismatch]:
    """All that does not fit in a conversation: schemas, calls, and results that answer no call or are missing.

    Calls are only checked against `tools` where there are any: without tools nobody says what may be called.
    """
    found = [Mismatch("a tool's schema is broken", sentence) for sentence in _validate_schemas(tools)]
    for index, message in enumerate(messages):
        if tools and message.tool_calls:
            found += [Mismatch(kind, f"turn {index + 1}: {sentence}", index) for kind, sentence in _of_calls(message, tools)]
    return found + list(_of_results(messages))


def _of_calls(message: Message, tools: Tools) -> Iterator[tuple[str, str]]:
    offered = {str(function.get("name")): function for function in map(_function, tools)}
    for number, call in enumerate(message.tool_calls, 1):
        place = f"call {number} ({call.name})"
        if call.name not in offered:
            known = f" Offered: {', '.join(sorted(offered)) or 'none'}."
            yield (
                "a tool call names a function that the row's tools do not offer",
                f"{place}: unknown function.{did_you_mean(call.name, sorted(offered))}{known}",
            )
            continue
        yield from _of_arguments(place, call, offered[call.name])


def _of_arguments(place: str, call: ToolCall, function: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    parameters = function.get("parameters")
    checker = _checker(_dumped(parameters))
    if isinstance(checker, str):
        return  # `_validate_schemas` says so once
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    known = sorted(map(str, properties)) if isinstance(properties, Mapping) else []
    closed = isinstance(parameters, Mapping) and parameters.get("additionalProperties") is False
    if isinstance(properties, Mapping) and not closed and not _open(parameters):
        for key in call.arguments:
            if key not in properties:
                allowed = f"{did_you_mean(key, known)} Known: {', '.join(known) or 'none'}."
                yield "a tool call has an argument that its function does not know", f"{place}: `{key}` is no argument of it.{allowed}"
    try:
        errors = sorted(checker.iter_errors(dict(call.arguments)), key=lambda error: [str(step) for step in error.absolute_path])
    except (referencing.exceptions.Unresolvable, RecursionError) as cause:
        yield "a tool's schema is broken", f"{place}: its schema cannot be followed ({type(cause).__name__})"
        return
    for error in errors:
        yield _sentence(place, error)


def _sentence(place: str, error: jsonschema.ValidationError) -> tuple[str, str]:
    path = error.json_path.removeprefix("$").removeprefix(".")
    at = f"{place}, `{path}`" if path else place
    if error.validator == "required":
        missing = [key for key in _listed(error.validator_value) if key not in _listed(error.instance)]
        return "a tool call lacks an argument that its function requires", f"{at}: {', '.join(f'`{key}`' for key in missing)} is missing"
    if error.validator == "additionalProperties":
        return "a tool call has an argument that its function does not know", f"{at}: {error.message}"
    if error.validator == "type":
        wanted = " or ".join(_listed(error.validator_value))
        return "a tool call has an argument of a wrong type", f"{at}: expected {wanted}, found {_shown(error.instance)}"
    if error.validator == "enum":
        return (
            "a tool call has an argument that is not among its choices",
            f"{at}: {_shown(error.instance)} is not one of {_shown(error.validator_value)}",
        )
    return "a tool call has an argument that does not fit its schema", f"{at}: {error.message[:200]}"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(entry) for entry in value]


def _of_results(messages: Sequence[Message]) -> Iterator[Mismatch]:
    """Results that answer no call, calls left without results in the middle, results in another order than their calls."""
    waiting: list[ToolCall] = []
    asked = 0
    for index, message in enumerate(messages):
        if message.role == "tool":
            yield from _answered(message, waiting, index)
            continue
        if waiting:
            yield Mismatch(
                "a tool call has no result, and the conversation goes on",
                f"turn {asked + 1}: the call of {waiting[0].name!r} has no result before turn {index + 1}",
                asked,
            )
        waiting, asked = list(message.tool_calls), index


def _answered(message: Message, waiting: list[ToolCall], index: int) -> Iterator[Mismatch]:
    place = f"turn {index + 1} (tool)"
    if not waiting:
        yield Mismatch("a tool result answers no call", f"{place}: there is no call before it that waits for a result", index)
        return
    found = next((call for call in waiting if call.id == message.tool_call_id), None) if message.tool_call_id else None
    if message.tool_call_id and found is None and any(call.id for call in waiting):
        ids = ", ".join(repr(call.id) for call in waiting)
        yield Mismatch("a tool result answers no call", f"{place}: no call has the id {message.tool_call_id!r}; waiting: {ids}", index)
        return
    if found is None and message.name:
        found = next((call for call in waiting if call.name == message.name), None)
        if found is None:
            yield Mismatch("a tool result answers no call", f"{place}: no call of {message.name!r} waits for a result", index)
            return
    if found is not None and found is not waiting[0]:
        sentence = f"{place}: the result of {found.name!r} comes before that of {waiting[0].name!r}, which was called first"
        yield Mismatch("tool results are in another order than their calls", sentence, index)
    waiting.remove(found or waiting[0])


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def _open(parameters: Any) -> bool:
    """Whether a schema says itself that it takes more than its properties, or may do so in ways not looked into."""
    return any(
        key in parameters
        for key in ("additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "unevaluatedProperties")
    )


def _dumped(parameters: Any) -> str:
    try:
        return json.dumps(parameters, sort_keys=True)
    except (TypeError, ValueError):
        return "[]"


@lru_cache(maxsize=4096)
def _checker(parameters: str) -> jsonschema.Draft202012Validator | str:
    """The validator of a schema, or what is wrong with the schema."""
    schema = json.loads(parameters)
    if schema is None:
        schema = {}
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"{error.json_path}: {error.message[:200]}"
    except RecursionError:
        return "it is nested too deep"
    return jsonschema.Draft202012Validator(_with_null(schema), registry=_NOTHING_FETCHED)


def _with_null(schema: Any) -> Any:
    """The schema with `nullable: true`, which OpenAPI and transformers write, as JSON Schema says it."""
    if isinstance(schema, list):
        return [_with_null(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _with_null(value) if key not in ("enum", "const", "default", "examples") else value for key, value in schema.items()}
    if schema.get("nullable") is not True:
        return inner
    if "enum" in inner:
        inner["enum"] = [*inner["enum"], None]
    return {**inner, "type": [*_listed(inner["type"]), "null"]} if "type" in inner else {"anyOf": [{"type": "null"}, inner]}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:60] + "…"
