"""JSON schemas at random: every kind of value that has a largest size, nested, from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np

WORDS = ("name", "size", "ring count", "größe", "ok?", "x", 'quo"te', "back\\slash", "λ")
PATTERNS = ("^[a-z]{2,4}$", "^(yes|no|maybe)$", "^[0-9]{3}-[A-F]$", "^$|^a$")


def random_schema(seed: int) -> dict[str, Any]:
    """An object's schema: what functions and structured answers have at the top."""
    return _object(np.random.default_rng(seed), 3)


def _value(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _plain, _choice]
    if depth > 0:
        kinds += [_object, _array, _any_of]
    return kinds[rng.integers(len(kinds))](rng, depth)


def _object(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    names = rng.permutation(WORDS)[: rng.integers(0, 4)].tolist()
    required = [name for name in names if rng.random() < 0.6]
    return {
        "type": "object",
        "properties": {name: _value(rng, depth - 1) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _array(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    least = int(rng.integers(0, 3))
    return {"type": "array", "items": _value(rng, depth - 1), "minItems": least, "maxItems": least + int(rng.integers(0, 3))}


def _any_of(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(rng, depth - 1) for _ in range(rng.integers(1, 4))]}


def _string(rng: np.random.Generator, _depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"type": "string", "pattern": str(rng.choice(PATTERNS))}
    least = int(rng.integers(0, 4))
    return {"type": "string", "minLength": least, "maxLength": least + int(rng.integers(0, 6))}


def _integer(rng: np.random.Generator, _depth: int) -> dict[str, Any]:
    low = int(rng.integers(-120, 100))
    return {"type": "integer", "minimum": low, "maximum": low + int(rng.integers(0, 1000))}


def _number(rng: np.random.Generator, _depth: int) -> dict[str, Any]:
    return {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 20} if rng.random() < 0.2 else {"enum": [0.5, -1e-3, 7, 12.25]}


def _plain(rng: np.random.Generator, _depth: int) -> dict[str, Any]:
    return [{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}][rng.integers(3)]


def _choice(rng: np.random.Generator, _depth: int) -> dict[str, Any]:
    values = [*WORDS, 3, None, True, [1, "a"], {"k": [None]}]
    return {"enum": [values[place] for place in rng.permutation(len(values))[: rng.integers(1, 4)]]}
