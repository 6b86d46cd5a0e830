"""A file of made-up conversations, the same from the same seed: what `sapwood bench data` prepares.

1 to 3 turns of the user and of the assistant, half with a system message (one of 20), lengths log-normal in words, words drawn with
Zipf's frequencies: common English ones, and 300,000 made of two of them. The first million words hold about 50,000 different
ones, as natural text does, so that what a tokenizer remembers helps as much as it would there; no text comes twice. Left out
on purpose: tools, reasoning, media, broken rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sapwood.errors import storage

_COMMON = (
    "the of and to in is that for it as was with on be by this are from or an at not have which you they we can will has more one "
    "if all about when there would their so what out up who how some them other time into people see only then could also than first "
    "new made between many must through years where much before right good each those both long too same used after should because "
    "does under while still"
)
_STEMS = (
    "city water price answer question order account small large world river music report week please table paper house stone light "
    "green point market number letter garden window bridge train engine power sound colour field forest mountain island harbour ship "
    "carbon metal glass cloth bread butter sugar salt fish bird horse cattle sheep wheel road street corner north south east west "
    "winter summer spring morning evening night day month season storm cloud rain snow wind fire smoke ash sand clay brick wood leaf "
    "root branch flower seed fruit apple cherry orange lemon pepper hand foot head heart bone skin blood voice word line page book "
    "story song dance game team player match score goal prize school class lesson teacher student test grade office manager worker "
    "union strike labour wage tax bank credit loan debt stock share bond fund trade export import duty law court judge trial jury"
)
_ENDINGS = ["", "", "", "s", "ing", "ed", "er", "ly", "é"]
_PUNCTUATION = np.array([""] * 40 + [",", ",", ",", ".", ".", ".", "?", ":", " –", ".\n"])
_EXPONENT = 1.2
"""Of Zipf's law: as many different words as natural text has (about 50,000 in the first million)."""
RARE_WORDS = 300_000
SYSTEMS = 20
_MEDIAN_WORDS = {"system": 25.0, "user": 18.0, "assistant": 38.0}
_SPREAD = 0.8
_CHUNK = 1000


def write_conversations(file: Path, rows: int, seed: int = 0) -> str:
    """Write `rows` conversations as JSON Lines; the sha256 of the file. Raises `StorageError` where the disk refuses."""
    digest = hashlib.sha256()
    with storage(file, "write"), file.open("wb") as out:
        for row in conversations(rows, seed):
            line = orjson.dumps(row) + b"\n"
            digest.update(line)
            out.write(line)
    return digest.hexdigest()


def conversations(rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows with `messages` and an `id`. A longer file begins as a shorter one does."""
    words, shares = _vocabulary(np.random.default_rng(seed))
    systems = [_text(np.random.default_rng([seed, 1, n]), words, shares, 1, "system")[0] for n in range(SYSTEMS)]
    for first in range(0, rows, _CHUNK):
        rng = np.random.default_rng([seed, 2, first])
        turns_B = rng.integers(1, 4, _CHUNK)
        system_B = rng.integers(0, 2 * SYSTEMS, _CHUNK)
        asked = iter(_text(rng, words, shares, int(turns_B.sum()), "user"))
        answered = iter(_text(rng, words, shares, int(turns_B.sum()), "assistant"))
        for place in range(min(_CHUNK, rows - first)):
            messages = [{"role": "system", "content": systems[system_B[place]]}] if system_B[place] < SYSTEMS else []
            for _ in range(turns_B[place]):
                messages += [{"role": "user", "content": next(asked)}, {"role": "assistant", "content": next(answered)}]
            yield {"messages": messages, "id": first + place}


class Words:
    """Texts of words drawn with Zipf's frequencies, as many as are asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._words, self._shares = _vocabulary(rng)

    def text(self, count: int) -> str:
        """A text of `count` words."""
        places = np.searchsorted(self._shares, self._rng.random(count))
        return " ".join(self._words[np.minimum(places, len(self._words) - 1)]).capitalize()


def _vocabulary(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The words, and the cumulated share of each: Zipf's law, common words first."""
    stems = _STEMS.split()
    first, second = rng.integers(0, len(stems), (2, RARE_WORDS))
    ending = rng.integers(0, len(_ENDINGS), RARE_WORDS)
    rare = [stems[a] + stems[b] + _ENDINGS[c] for a, b, c in zip(first, second, ending, strict=True)]
    rare[: 4 * len(stems)] = [stem + end for end in ("", "s", "ed", "er") for stem in stems]
    rare[7::97] = [str(number) for number in rng.integers(0, 1_000_000, len(rare[7::97]))]
    words = np.array([*_COMMON.split(), *rare], dtype=object)
    shares = np.arange(2.0, len(words) + 2) ** -_EXPONENT
    return words, np.cumsum(shares / shares.sum())


def _text(rng: np.random.Generator, words: np.ndarray, shares: np.ndarray, count: int, role: str) -> list[str]:
    """`count` texts of words and punctuation."""
    lengths = np.maximum(2, rng.lognormal(np.log(_MEDIAN_WORDS[role]), _SPREAD, count)).astype(int)
    chosen = words[np.minimum(np.searchsorted(shares, rng.random(int(lengths.sum()))), len(words) - 1)]
    marks = _PUNCTUATION[rng.integers(0, len(_PUNCTUATION), len(chosen))]
    pieces = [word + mark for word, mark in zip(chosen, marks.tolist(), strict=True)]
    ends = np.cumsum(lengths)
    return [" ".join(pieces[end - length : end]).rstrip(",: –\n").capitalize() for length, end in zip(lengths, ends, strict=True)]
