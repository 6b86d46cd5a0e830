"""Blind pairs: two arms' answers to the same items, side by side, with nothing that tells which is which.

In: scores of two arms, the items, a rater's name, a secret salt of the run. Out: `Pair` records that hold the key (which
arm stands left) and stay with the run in `pairs.jsonl`, and for the rater `BlindPair`s that do not.
Left out on purpose: dropping pairs with equal answers (a tie is an answer), and masking of names inside of answers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.errors import DataError
from sapwood.evaluate import ArmScore
from sapwood.records import Ended, Item, Message


@dataclass(frozen=True, slots=True)
class BlindPair:
    """All that a rater may see. `id` is a salted hash and says nothing."""

    id: str
    asked: tuple[Message, ...]
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The key of a pair: never shown to a rater before the vote is closed."""

    id: str
    item: str
    cluster: str | None
    rater: str
    left_arm: str
    right_arm: str
    left: str
    right: str

    def record(self) -> dict[str, Any]:
        """The record of `pairs.jsonl`."""
        return dataclasses.asdict(self)

    def blind(self, item: Item) -> BlindPair:
        """What the rater gets. `item` is the pair's item."""
        assert item.id == self.item, "a pair is shown with its own item"
        return BlindPair(self.id, item.conversation.messages, self.left, self.right)


def blind_pairs(scores: Iterable[ArmScore], items: Sequence[Item], arms: tuple[str, str], *, rater: str, salt: str) -> list[Pair]:
    """One pair for each item that both arms answered, in an order and with sides that depend on (salt, item, rater) alone.

    Called again it gives the same pairs. Raises `DataError` for an empty salt, twice the same arm, or no common item.
    """
    first, second = arms
    if not salt or first == second:
        raise DataError("Blind pairs need a secret salt that is not empty, and two different arms.")
    asked = {item.id for item in items}
    answers: dict[str, dict[str, ArmScore]] = {first: {}, second: {}}
    for score in scores:
        if score.arm in answers and score.item in asked and score.ended != Ended.ERROR:
            answers[score.arm][score.item] = score
    common = [name for name in answers[first] if name in answers[second]]
    if not common:
        raise DataError(f"The arms {first!r} and {second!r} share no answered item. Evaluate both on the same items first.")
    pairs = []
    for name in sorted(common, key=lambda name: hash_of(salt, "order", name, rater)):
        sides = (first, second) if int(hash_of(salt, "side", name, rater), 16) % 2 == 0 else (second, first)
        left, right = (answers[arm][name] for arm in sides)
        key = hash_of(salt, "pair", name, rater, *sorted(arms))[:16]
        pairs.append(Pair(key, name, left.cluster, rater, *sides, left.text, right.text))
    return pairs


def pairs_from(records: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """Pairs of a run's `pairs.jsonl`."""
    names = [field.name for field in dataclasses.fields(Pair)]
    return [Pair(**{name: record[name] for name in names}) for record in records]


def hash_of(*parts: str) -> str:
    """A hex hash of several texts; their lengths keep ("ab", "c") and ("a", "bc") apart."""
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()
