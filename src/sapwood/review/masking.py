"""Words that tell who wrote an answer, covered while a batch is open, and put back where an expert has corrected around them.

In: a text and the words of a batch. Out: the text with `⟦name 1⟧`, `⟦name 2⟧`, … in their place. Left out on purpose: style, which
tells something too, and which no list of words can cover.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

VENDORS = (
    *("OpenAI", "Anthropic", "DeepMind", "Mistral AI", "Mistral", "Cohere", "DeepSeek", "Alibaba Cloud", "Hugging Face", "xAI"),
    *("ChatGPT", "GPT", "Claude", "Gemini", "Gemma", "Llama", "Qwen", "Mixtral", "SmolLM", "Grok", "Copilot"),
)
"""Makers and models that answers like to name."""
_SHORTEST = 3
_COVER = re.compile(r"⟦name (\d+)⟧")


class Mask:
    """Covers the names of makers, and the words that a batch adds: its arms and their models."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        own = sorted({word.strip() for word in words if len(word.strip()) >= _SHORTEST}, key=len, reverse=True)
        makers = "|".join(map(re.escape, VENDORS))  # as they are written: a llama is an animal, and claude may be anybody
        own_words = f"|(?i:{'|'.join(map(re.escape, own))})" if own else ""
        # what follows a maker's name is its model's number: GPT-4o, Qwen2.5, Llama 3
        self._names = re.compile(rf"(?<![^\W_])(?:{makers}{own_words})(?:[- ]?v?\d[\w.]*(?<!\.))?(?![^\W\d_])")

    def cover(self, text: str) -> tuple[str, list[str]]:
        """(the text without names, the names in order)"""
        found: list[str] = []

        def one(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"⟦name {len(found)}⟧"

        # a text that holds a cover of its own must not be given a name that was never there
        return self._names.sub(one, _COVER.sub(r"[name \1]", text)), found

    def __call__(self, text: str) -> str:
        return self.cover(text)[0]


def uncover(text: str, names: list[str]) -> str:
    """Put the names back that are still marked in a text; a mark of no name stays as it is."""
    return _COVER.sub(lambda match: names[int(match[1]) - 1] if 0 < int(match[1]) <= len(names) else match[0], text)
