"""Whether JSON comes out of the parser as it was written, and can be written again.

orjson makes a float of a whole number beyond 64 bits, which loses its last digits without a word, reads 1,024 levels of
nesting and writes 254. In: JSON text, or a value. Out: what is wrong, in words, or nothing.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from sapwood.data.refusal import Refused

TOO_DEEP = "nested too deep: more than 240 levels of lists and objects"
_DIGIT = bytes(0x31 if 0x30 <= byte <= 0x39 else 0x30 for byte in range(256))
_SHORTEST = 19
"""Digits of the shortest whole number that 64 bits may not hold."""


def too_deep(value: Any) -> bool:
    """Whether a JSON value could not be written again inside a record of ours."""
    try:
        orjson.dumps([[[[[[[[[[[[value]]]]]]]]]]]])
    except TypeError:
        return True
    return False


def oversized_number(text: bytes) -> str:
    """The first whole number in the JSON that 64 bits do not hold; empty if there is none."""
    # A run of 19 digits covers two neighbours of every ninth place: looked at alone, they cost a tenth of a search.
    if b"11" not in text[:: (_SHORTEST - 1) // 2].translate(_DIGIT):
        return ""
    found = ""

    def seen(digits: str) -> int:
        nonlocal found
        number = int(digits) if len(digits) < 40 else 2**70
        if not -(2**63) <= number < 2**64:
            found = found or digits
        return 0

    try:
        json.loads(text, parse_int=seen)
    except (ValueError, RecursionError):
        return ""  # broken, which the parser proper says better
    return found


def check_exact(text: bytes) -> None:
    """Raise `Refused` for a number that the parser would change."""
    digits = oversized_number(text)
    if digits:
        short = digits if len(digits) <= 30 else digits[:29] + "…"
        raise Refused(f"number too large: {short} has more than 64 bits and would lose its last digits", "write it as text")
