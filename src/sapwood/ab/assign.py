"""Which arm a unit gets: its hash, and nothing else.

In: the text that names a unit. Out: a place in 0..1 and a key under which it is recorded; both from SHA-256 over the salt and the text,
from different bytes, so that the key says nothing of the place. The text itself is kept nowhere. Whoever holds the salt and guesses a
name can find its key: it is a pseudonym, not a secret.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sapwood.ab.plan import Plan


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit, as it is recorded."""

    key: str
    """32 hexadecimal digits."""
    place: float
    """In 0..1, uniform over units."""


def unit_of(plan: Plan, text: str) -> Unit:
    """The unit that a text names, in this experiment."""
    digest = hashlib.sha256(f"{plan.salt or plan.name}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return Unit(digest[8:24].hex(), int.from_bytes(digest[:8]) / 2**64)


def override_of(plan: Plan, text: str) -> int | None:
    """The arm that the plan sends this unit to by hand."""
    names = [arm.name for arm in plan.arms]
    return next((names.index(override.arm) for override in plan.overrides if override.unit == text), None)
