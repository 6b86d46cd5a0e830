"""Prompts with several answers, of exact lengths: the rows of preference pairs and of groups.

In: a tokenizer's chat, a number of prompts. Out: examples of several rows, one behind the other as preference and policy training take
them. Texts are random words cut to length, each prompt another one, so that a prompt is shared by its own answers and by nothing else.
Left out on purpose: answers that end. Each has as many tokens as it may, so that both sides do the same work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.conversations import Words
from sapwood.chat import Chat
from sapwood.records import Example, Message, Row

MARGIN = 50
"""Tokens at either end of a message that are cut off: what a template writes there would be shared."""
WARM = 8
"""Prompts of the first step, which nobody times, are so many times shorter: a peer takes half a minute for a whole one."""


@dataclass(frozen=True)
class Shape:
    """Lengths of a prompt and of each of its answers, in tokens, and how many answers it has."""

    prompt: int
    answer: int
    answers: int


def steps_of_answers(chat: Chat, steps: int, rows: int, shape: Shape, rng: np.random.Generator) -> list[Example]:
    """The examples of all steps, `rows` in each; those of the first, which warms up, have short prompts."""
    warm = replace(shape, prompt=shape.prompt // WARM)
    return prompts_with_answers(chat, rows, warm, rng) + prompts_with_answers(chat, (steps - 1) * rows, shape, rng)


def prompts_with_answers(chat: Chat, count: int, shape: Shape, rng: np.random.Generator) -> list[Example]:
    """`count` examples of one prompt and `shape.answers` rows each."""
    words = Words(rng)

    def text(length: int) -> NDArray[np.int64]:
        ids = chat.prompt([Message("user", words.text(length + 2 * MARGIN))]).ids
        return np.array(ids[MARGIN : MARGIN + length], np.int64)

    ones = np.ones(shape.answer, np.float32)
    examples = []
    for _ in range(count):
        prompt_T = text(shape.prompt)
        examples.append(Example(tuple(Row(prompt_T, text(shape.answer), ones) for _ in range(shape.answers))))
    return examples
