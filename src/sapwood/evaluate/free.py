"""Arms that need no model: what a constant and a lookup reach on the same items.

In: the training items. Out: functions item → text, which go through the very same scorer as a model's answers.
A fine-tuned model that does not beat these has learned a table.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sapwood.errors import DataError
from sapwood.evaluate.items import answer_text, asked_text
from sapwood.records import Item

MOST_COMMON = "most common answer"
NEAREST = "nearest training row"
FREE_ARMS = (MOST_COMMON, NEAREST)
"""Names of the arms that need no model."""

_WORD = re.compile(r"\w+")


def most_common_answer(train_items: Sequence[Item]) -> Callable[[Item], str]:
    """Answers everything with the most frequent training answer (the first of equals). Raises `DataError` without items."""
    if not train_items:
        raise DataError("The most common answer needs at least one training item.")
    constant = Counter(answer_text(item) for item in train_items).most_common(1)[0][0]
    return lambda item: constant


def nearest_row(train_items: Sequence[Item]) -> Callable[[Item], str]:
    """Answers with the answer of the training row whose question is nearest (see `likeness`).

    Of equally near rows the first counts; where no word is known, the most common answer. Raises `DataError` without items.
    """
    fallback = most_common_answer(train_items)
    answers, alike = [answer_text(item) for item in train_items], likeness(train_items)

    def answer(item: Item) -> str:
        likeness_B = alike(item)
        return answers[int(likeness_B.argmax())] if likeness_B.any() else fallback(item)

    return answer


def likeness(train_items: Sequence[Item]) -> Callable[[Item], NDArray[np.float64]]:
    """A function item → how near each training row's question is, by the cosine of TF-IDF vectors of words, the item's own not normed.

    Weights are (1 + log count) · (log((1 + rows) / (1 + rows with the word)) + 1).
    """
    counts = [_words(item) for item in train_items]
    rows_with: Counter[str] = Counter(word for row in counts for word in row)
    rarity = {word: math.log((1 + len(counts)) / (1 + rows)) + 1 for word, rows in rows_with.items()}
    postings: dict[str, tuple[list[int], list[float]]] = {word: ([], []) for word in rarity}
    for place, row in enumerate(counts):
        weights = {word: (1 + math.log(count)) * rarity[word] for word, count in row.items()}
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        for word, weight in weights.items():
            postings[word][0].append(place)
            postings[word][1].append(weight / length)
    index = {word: (np.array(places), np.array(weights)) for word, (places, weights) in postings.items()}

    def alike(item: Item) -> NDArray[np.float64]:
        likeness_B = np.zeros(len(train_items))
        for word, count in _words(item).items():
            if word in index:
                places, weights = index[word]
                likeness_B[places] += weights * (1 + math.log(count)) * rarity[word]
        return likeness_B

    return alike


def _words(item: Item) -> Counter[str]:
    return Counter(_WORD.findall(asked_text(item).casefold()))
