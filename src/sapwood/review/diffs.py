"""What differs between two texts, word by word.

In: two texts. Out: runs of (`same` | `gone` | `new`, text). Texts that are too long to compare by words are compared by lines. A word or
two that happen to be the same amid changes are changes too: a person reads phrases, not coincidences.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Literal

Change = Literal["same", "gone", "new"]
MOST_WORDS = 4000
SHORT = 3
"""Words from which on a part between two changes counts as the same."""
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


def changes(before: str, after: str) -> Iterator[tuple[Change, str]]:
    """Runs that give `before` without the new ones and `after` without those gone."""
    left, right = _WORD.findall(before), _WORD.findall(after)
    words = max(len(left), len(right)) <= MOST_WORDS
    if not words:
        left, right = before.splitlines(keepends=True), after.splitlines(keepends=True)
    codes = difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    gone, new = "", ""
    for place, (what, i, j, k, m) in enumerate(codes):
        between = 0 < place < len(codes) - 1
        told = sum(word[0].isalnum() for word in left[i:j])
        if what == "equal" and not (words and between and told < SHORT):
            yield from _told(gone, new)
            gone = new = ""
            yield "same", "".join(left[i:j])
        else:
            gone, new = gone + "".join(left[i:j]), new + "".join(right[k:m])
    yield from _told(gone, new)


def _told(gone: str, new: str) -> Iterator[tuple[Change, str]]:
    if gone:
        yield "gone", gone
    if new:
        yield "new", new
