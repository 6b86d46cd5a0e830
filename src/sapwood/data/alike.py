"""Texts that say nearly the same: texts in, clusters out; and questions that stand in the training rows, exactly or nearly.

Likeness is the Jaccard index of sets of five-letter pieces of the normalised text, estimated by 128 MinHashes (Broder 1997) that are
compared where one of 32 bands of 4 agrees. Two texts with a likeness of 0.8 are found with a chance of 99.99 %, of 0.3 with 23 %; those
found are then compared by their true likeness. Left out on purpose: meaning. A question in other words is another question here.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

HASHES, BANDS, PIECE, WORDS = 128, 32, 5, 13
MANY = 50
"""Texts that share a band above which only neighbours among them are compared: they are linked through one another."""
LEVELS = ("exact", "normalised", "n-gram", "near")
"""How a question may stand in the training rows, the surest first."""


class _Kept(dict[int, str]):
    """For `str.translate`: letters and the marks on them, digits, and symbols as words of their own; anything else is a space."""

    def __missing__(self, code: int) -> str:
        sign, kind = chr(code), unicodedata.category(chr(code))[0]
        self[code] = sign if kind in "LMN" else f" {sign} " if kind == "S" else " "
        return self[code]


_KEPT = _Kept(dict.fromkeys(map(ord, "`|~^"), " ") | {ord("_"): "_", ord("%"): " % "})
_BETWEEN_NUMBERS = re.compile(r"(?<=\d)\s*([-*/])\s*(?=[\d(])")
_NOTES = re.compile(r"(?<=\w)#")


def normalised(text: str) -> str:
    """Small letters, digits, symbols and single spaces: what stays of a text when its look changes. A text of marks alone stays as it is.

    What says something stays: the sign of a sum, the sharp of C#, a smile, a vowel that Hindi writes as a mark.
    """
    small = unicodedata.normalize("NFKC", text).casefold()
    signs = _NOTES.sub("♯", _BETWEEN_NUMBERS.sub(lambda sign: {"-": "−", "*": "×", "/": "÷"}[sign[1]], small))
    return " ".join(signs.translate(_KEPT).split()) or " ".join(small.split())


def pieces(text: str) -> frozenset[int]:
    """Hashes of all pieces of five letters; of the whole text where it is shorter."""
    plain = normalised(text)
    return frozenset(zlib.crc32(plain[start : start + PIECE].encode()) for start in range(max(1, len(plain) - PIECE + 1)))


def likeness(one: frozenset[int], other: frozenset[int]) -> float:
    """The Jaccard index: shared pieces of all pieces."""
    return len(one & other) / len(one | other) if one or other else 1.0


@dataclass(frozen=True)
class Shelf:
    """Texts in the order given, found again by likeness."""

    texts: Sequence[str]

    @cached_property
    def pieces(self) -> list[frozenset[int]]:
        """Of each text."""
        return [pieces(text) for text in self.texts]

    @cached_property
    def _bands(self) -> dict[tuple[int, bytes], list[int]]:
        found: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        for place, own in enumerate(self.pieces):
            for key in _keys(own):
                found[key].append(place)
        return found

    def near(self, text: str, least: float) -> list[tuple[int, float]]:
        """(place, likeness) of texts at least so like this one, the likest first."""
        own = pieces(text)
        candidates = {place for key in _keys(own) for place in self._bands.get(key, ())}
        measured = [(place, likeness(own, self.pieces[place])) for place in candidates]
        return sorted(((place, value) for place, value in measured if value >= least), key=lambda pair: (-pair[1], pair[0]))

    def clusters(self, least: float) -> list[int]:
        """For each text the first text of its cluster: texts that are so like one another, or linked by such."""
        first = list(range(len(self.texts)))

        def root(place: int) -> int:
            while first[place] != place:
                first[place] = first[first[place]]
                place = first[place]
            return place

        for members in self._bands.values():
            for one, other in combinations(members, 2) if len(members) <= MANY else pairwise(members):
                a, b = root(one), root(other)
                if a != b and likeness(self.pieces[one], self.pieces[other]) >= least:
                    first[max(a, b)] = min(a, b)
        return [root(place) for place in range(len(self.texts))]


def _multipliers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 1 << 63, (2, HASHES), dtype=np.uint64)
    return draws[0] * np.uint64(2) + np.uint64(1), draws[1]


_A, _B = _multipliers()


def _keys(own: frozenset[int]) -> list[tuple[int, bytes]]:
    """The bands of a set's MinHashes."""
    values = np.fromiter(own, dtype=np.uint64, count=len(own))
    smallest = ((values[:, None] * _A[None] + _B[None]) >> np.uint64(32)).min(0)  # multiply-shift: overflow is meant (Dietzfelbinger 1997)
    return [(band, part.tobytes()) for band, part in enumerate(smallest.reshape(BANDS, -1))]


def contamination(training: Sequence[str], near: float = 0.8) -> Callable[[str], str | None]:
    """A function question → how it stands in the training texts (one of `LEVELS`), or None where it does not.

    exact: the very text. normalised: but for case, marks and spaces. n-gram: a run of 13 words is in one of them (Brown et al. 2020,
    appendix C). near: the likeness of a training text is at least `near`.
    """
    texts = set(training)
    plain = {normalised(text) for text in training}
    runs = {run for text in plain for run in _runs(text)}
    shelf = Shelf(list(texts))

    def level(question: str) -> str | None:
        if question in texts:
            return "exact"
        own = normalised(question)
        if own in plain:
            return "normalised"
        if any(run in runs for run in _runs(own)):
            return "n-gram"
        return "near" if shelf.near(question, near) else None

    return level


def _runs(plain: str) -> list[str]:
    words = plain.split()
    return [" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)]
