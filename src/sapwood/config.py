"""Knobs: frozen dataclasses in, plain dictionaries and YAML out, and back again with every key checked.

A knob lives in the dataclass of the file that reads it. This module knows no knob; it only moves values
between dataclasses, YAML files and dictionaries, and says "did you mean" where a key is unknown.
Left out on purpose: interpolation, includes, and `None` meaning "inherit".
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from sapwood.errors import ConfigError, storage

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary of a dataclass: what `config.yaml` holds."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return str(value) if isinstance(value, Path) else value


def from_dict(cls: type[C], data: Mapping[str, Any], where: str) -> C:
    """Build `cls` from nested dictionaries; absent keys take their defaults.

    Raises `ConfigError` naming `where` and the dotted key for unknown keys and values of another type.
    """
    return typing.cast(C, _build(cls, data, where, ""))


def known_keys(cls: type, prefix: str = "") -> list[str]:
    """Every dotted key of a config class, in order."""
    hints, keys = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        nested = dataclasses.is_dataclass(kind)
        keys += known_keys(kind, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return keys


def did_you_mean(word: str, known: list[str]) -> str:
    """A sentence that suggests the nearest known names, or an empty string."""
    leaves: dict[str, str] = {}
    for key in known:
        leaves.setdefault(key.rsplit(".", 1)[-1], key)
    near = difflib.get_close_matches(word, known, n=2) or [
        leaves[leaf] for leaf in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(leaves), n=2)
    ]
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def with_knobs(config: C, knobs: Mapping[str, Any]) -> C:
    """The config with knobs set by their plain or dotted names. Raises `ConfigError` for unknown names and wrong types."""
    dotted = {key.rsplit(".", 1)[-1]: key for key in known_keys(type(config))}
    content = to_dict(config)
    for name, value in knobs.items():
        if name not in dotted and name not in dotted.values():
            names = list(dotted)
            raise ConfigError(f"the call: unknown option `{name}`.{did_you_mean(name, names)} Known: {', '.join(names)}.")
        *path, leaf = dotted.get(name, name).split(".")
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = fspath(value) if isinstance(value, PathLike) else value
    return from_dict(type(config), content, "the call")


def load_yaml(cls: type[C], path: Path) -> C:
    """Read a config file. Raises `ConfigError` for broken YAML and unknown keys, `StorageError` for unreadable files."""
    try:
        with storage(path, "read"):
            text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Check the path.") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f":{place.line + 1}" if place else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}). Mend the line and try again.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {'nothing' if data is None else type(data).__name__}.")
    return from_dict(cls, data, str(path))


def save_yaml(config: Any, path: Path) -> None:
    """Write the resolved config, so that a run can be started again from it."""
    with storage(path, "write"):
        path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _build(cls: type, data: Any, where: str, prefix: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: `{prefix.rstrip('.')}` should hold keys, found {type(data).__name__}.")
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    for key in data:
        if key not in names:
            known = known_keys(cls, prefix)
            raise ConfigError(
                f"{where}: unknown option `{prefix}{key}`.{did_you_mean(str(key), known)} Known here: {', '.join(sorted(names))}."
            )
    given = {key: _coerce(hints[key], value, where, prefix + key) for key, value in data.items()}
    if missing := [field.name for field in dataclasses.fields(cls) if field.name not in given and _must_be_given(field)]:
        place = f"`{prefix.rstrip('.')}`" if prefix else "it"
        raise ConfigError(f"{where}: {place} lacks {', '.join(f'`{name}`' for name in missing)}. Known here: {', '.join(sorted(names))}.")
    return cls(**given)


def _must_be_given(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _coerce(kind: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where, key + ".")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(a for a in arguments if a is not type(None)), value, where, key)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: `{key}` is {value!r}; allowed: {', '.join(map(repr, arguments))}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return (_coerce(arguments[0], value, where, key),)
        return tuple(_coerce(arguments[0], entry, where, f"{key}[{place}]") for place, entry in enumerate(value))
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as text
        except ValueError:
            pass
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is Any or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise ConfigError(f"{where}: `{key}` should be {getattr(kind, '__name__', kind)}, found {value!r}.")
