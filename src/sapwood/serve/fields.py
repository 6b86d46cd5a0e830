"""Single fields of a request: what each may hold. Raises `RefusalError`, which names the field, for anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BIASES = 1024
"""Entries of a `logit_bias`."""


class RefusalError(Exception):
    """A request that is not taken: HTTP status, a sentence, the field at fault, and a code for programs."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None, wait: float = 0.0) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code, self.wait = message, param, status, code, wait


def stops(given: Any) -> tuple[str, ...]:
    """Texts that end an answer."""
    found = [given] if isinstance(given, str) else given or []
    if not isinstance(found, list) or len(found) > 16 or not all(isinstance(stop, str) and stop for stop in found):
        raise RefusalError("`stop` is a text or a list of up to 16 texts, none of them empty.", "stop")
    return tuple(found)


def stop_ids(given: Any) -> tuple[int, ...]:
    """Tokens that end an answer."""
    ids = given or []
    if not isinstance(ids, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise RefusalError("`stop_token_ids` is a list of token ids.", "stop_token_ids")
    return tuple(ids)


def bias(given: Any) -> tuple[tuple[int, float], ...]:
    """OpenAI's object of {"token id": -100 … 100}."""
    pairs = given or {}
    fits = (
        isinstance(pairs, dict)
        and len(pairs) <= BIASES
        and all(
            token.isascii() and token.isdigit() and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 100
            for token, value in pairs.items()
        )
    )
    if not fits:
        raise RefusalError(f"`logit_bias` is an object of at most {BIASES} token ids, each with a number from -100 to 100.", "logit_bias")
    return tuple((int(token), float(value)) for token, value in pairs.items())


def flag(body: Mapping[str, Any], name: str, *, otherwise: bool = False) -> bool:
    """True or false; `otherwise` where nothing is said."""
    value = body.get(name)
    if value is None:
        return otherwise
    if isinstance(value, bool):
        return value
    raise RefusalError(f"`{name}` is true or false, found {value!r:.40}.", name)


def whole(body: Mapping[str, Any], name: str, least: int, greatest: int = 10**9) -> int | None:
    """A whole number within bounds; None where nothing is said."""
    value = number(body, name, int, least, greatest)
    return None if value is None else int(value)


def number(body: Mapping[str, Any], name: str, kind: type, least: float, greatest: float) -> float | None:
    """A number within bounds, of the type `kind`; None where nothing is said."""
    value = body.get(name)
    if value is None:
        return None
    fits = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not fits or not least <= value <= greatest:
        what = "a whole number" if kind is int else "a number"
        raise RefusalError(f"`{name}` is {value!r:.40}; give {what} from {least:g} to {greatest:g}.", name)
    return float(value) if kind is float else int(value)
