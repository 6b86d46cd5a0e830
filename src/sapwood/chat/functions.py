"""Tool schemas from Python functions: type hints and docstring in, OpenAI's form out.

In: a function with type hints and, where there is one, a Google-style docstring. Out: `{"type": "function", "function": {name,
description, parameters}}`. Where transformers' `get_json_schema` gives a schema, this gives the same; beyond it there are
dataclasses, `TypedDict`, `Annotated`, tuples of any length, and functions without a docstring.
Left out on purpose: defaults as values (models would copy them), pydantic models, and guessing types that are not written.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NotRequired, Required, Union

from sapwood.errors import DataError

_PLAIN: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Raises|Yields?|Examples?|Notes?):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\s*)\*{0,2}(\w+)\s*(?:\([^)\n]*\))?:\s*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE | re.DOTALL)


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The tool schema of a function. Parameters without a default are required; `self` and `cls` are left out.

    Raises `DataError`, naming function and argument, for arguments without a type hint, `*args`, `**kwargs`, arguments that can
    only be given by place, and types that JSON cannot write.
    """
    name = getattr(function, "__name__", "operation")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise DataError(
            f"function {name}: its type hints cannot be read ({error}). Write types that can be found from its module."
        ) from None
    text, described, returns = _docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for place, (key, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if place == 0 and key in ("self", "cls") and parameter.annotation is inspect.Parameter.empty:
            continue
        where = f"function {name}, argument `{key}`"
        _refuse_kind(where, parameter)
        if key not in hints:
            raise DataError(f"{where}: there is no type hint. Write one, such as `{key}: str`, so that a model knows what to give.")
        properties[key] = _described(_schema(hints[key], where, ()), described.get(key))
        if parameter.default is inspect.Parameter.empty:
            required.append(key)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    found: dict[str, Any] = {"name": name, "description": text, "parameters": parameters}
    if "return" in hints and (given := _return(hints["return"], returns)) is not None:
        found["return"] = given
    return {"type": "function", "function": found}


def _refuse_kind(where: str, parameter: inspect.Parameter) -> None:
    kinds = {
        inspect.Parameter.VAR_POSITIONAL: "`*args` have no names, and a call names each argument. Take a list instead.",
        inspect.Parameter.VAR_KEYWORD: "`**kwargs` have no names to offer. Write each argument out, or take a dict.",
        inspect.Parameter.POSITIONAL_ONLY: "it can only be given by place, and a call names each argument. Remove the `/`.",
    }
    if parameter.kind in kinds:
        raise DataError(f"{where}: {kinds[parameter.kind]}")


def _return(hint: Any, text: str | None) -> dict[str, Any] | None:
    """The schema of what comes back, as transformers writes it; None where it cannot be written, for no model has to."""
    try:
        schema = _schema(hint, "return", ())
    except DataError:
        return None
    return {**schema, "description": text} if text is not None else schema


def _described(schema: dict[str, Any], text: str | None) -> dict[str, Any]:
    """The schema with its description; `(choices: ["a", "b"])` at its end becomes an `enum`."""
    if text is None:
        return schema
    found = _CHOICES.search(text)
    if found is not None:
        try:
            choices = json.loads(found[1])
        except ValueError:
            return {**schema, "description": text}
        schema = {**schema, "enum": [choice.strip() if isinstance(choice, str) else choice for choice in choices]}
        text = text[: found.start()].strip()
    return {**schema, "description": text}


def _schema(hint: Any, where: str, inside: tuple[Any, ...]) -> dict[str, Any]:
    """The JSON Schema of a type hint. `inside` are the classes it stands in, so that one that holds itself is found."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and origin is None and hint not in _PLAIN:
        return _of_class(hint, where, inside)
    if origin is None:
        try:
            return dict(_PLAIN[hint])
        except (KeyError, TypeError):
            raise _unwritable(hint, where) from None
    if origin in (Union, types.UnionType):
        return _of_union([_schema(each, where, inside) for each in arguments if each is not type(None)], type(None) in arguments)
    if origin is Literal:
        return _of_values(list(arguments), hint, where)
    if origin is typing.Annotated:
        note = next((extra for extra in arguments[1:] if isinstance(extra, str)), None)
        return _described(_schema(arguments[0], where, inside), note)
    if origin in (Required, NotRequired):
        return _schema(arguments[0], where, inside)
    if origin is list or origin in (Sequence, set, frozenset):
        return {"type": "array", "items": _schema(arguments[0], where, inside)}
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is ...:
            return {"type": "array", "items": _schema(arguments[0], where, inside)}
        return {"type": "array", "prefixItems": [_schema(each, where, inside) for each in arguments]}
    if origin is dict or origin is Mapping:
        if arguments[0] is not str:
            raise DataError(f"{where}: the keys of {hint} are no text, and JSON knows no others. Use dict[str, …].")
        return {"type": "object", "additionalProperties": _schema(arguments[1], where, inside)}
    raise _unwritable(hint, where)


def _of_union(choices: list[dict[str, Any]], nullable: bool) -> dict[str, Any]:
    if len(choices) == 1:
        found = choices[0]
    elif all(choice.keys() == {"type"} and isinstance(choice["type"], str) for choice in choices):
        names = sorted({choice["type"] for choice in choices})
        found = {"type": names[0] if len(names) == 1 else names}
    else:
        found = {"anyOf": choices}
    return {**found, "nullable": True} if nullable else found


def _of_values(values: list[Any], hint: Any, where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise DataError(f"{where}: {hint} has values that JSON cannot write. Use text, numbers, true, false or None.")
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _of_class(kind: type, where: str, inside: tuple[Any, ...]) -> dict[str, Any]:
    """Enumerations, dataclasses and typed dictionaries; no other class says what JSON it stands for."""
    if issubclass(kind, enum.Enum):
        return _of_values([member.value for member in kind], kind, where)
    if kind in inside:
        raise DataError(f"{where}: {kind.__name__} holds itself, which a schema here cannot say. Take a dict, or flatten it.")
    inside = (*inside, kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        needed = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
        return _object({f.name: _schema(hints[f.name], f"{where}, `{f.name}`", inside) for f in fields}, needed)
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        marks = {key: typing.get_origin(hint) for key, hint in hints.items()}  # where annotations are texts, the class missed them
        listed: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]
        needed = [key for key, mark in marks.items() if mark is Required or (mark is not NotRequired and key in listed)]
        return _object({key: _schema(hint, f"{where}, `{key}`", inside) for key, hint in hints.items()}, needed)
    raise _unwritable(kind, where)


def _object(properties: dict[str, Any], needed: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {})}


def _unwritable(hint: Any, where: str) -> DataError:
    return DataError(
        f"{where}: {getattr(hint, '__name__', hint)} is no type that JSON can write. Use str, int, float, bool, list, dict, Literal, an "
        "Enum, a dataclass or a TypedDict, or write the schema by hand."
    )


def _docstring(text: str) -> tuple[str, dict[str, str], str | None]:
    """Description, arguments and return value of a Google-style docstring."""
    sections = list(_SECTION.finditer(text))
    bodies = {}
    ends = [*(section.start() for section in sections[1:]), len(text)]
    for section, end in zip(sections, ends, strict=False):
        bodies[section[1]] = text[section.end() : end]
    arguments = next((bodies[key] for key in ("Args", "Arguments", "Parameters") if key in bodies), "")
    returns = next((bodies[key] for key in ("Returns", "Return") if key in bodies), None)
    description = text[: sections[0].start()] if sections else text
    return description.strip(), _arguments(arguments), returns.strip() if returns is not None else None


def _arguments(text: str) -> dict[str, str]:
    """`name: text` or `name (type): text`, with lines further in as its continuation."""
    found: dict[str, str] = {}
    current, indent = "", None
    for line in filter(str.strip, text.splitlines()):
        match = _ARGUMENT.match(line)
        if match is not None and (indent is None or len(match[1]) <= indent):
            current, indent = match[2], len(match[1])
            found[current] = match[3].strip()
        elif current:
            found[current] = f"{found[current]} {line.strip()}".strip()
    return found
