"""Images and sounds of prompts in a prefill: the tree compares contents by hash, the model gets tokens, features and positions.

In: prompts. Out: for the nodes of one forward their token ids, their positions (three a token where a model counts in time,
height and width), and the contents that stand in them; for each prompt how far its text's positions lie from its depth. Each
content of a forward is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sapwood.forest import ForestMedia, axis_positions
from sapwood.generate.tree import Node
from sapwood.records import Content, Prompt

Ints = NDArray[np.int64]


class PromptInput:
    """One prompt as a model takes it."""

    def __init__(self, prompt: Prompt, adapter: str | None = None) -> None:
        self.media = prompt.media
        self.adapter = adapter
        """The adapter it runs with (see `model.routes`)."""
        self.tokens_T = np.array(prompt.ids, dtype=np.int64)
        counts = any(span.content.grid is not None for span in prompt.media)
        self.axes_3T = axis_positions(len(prompt.ids) + 1, prompt.media) if counts else None
        """Positions on three axes, one place longer than the prompt, for models that count so."""

    @property
    def keys_T(self) -> Ints:
        """What is compared where prompts share beginnings."""
        keys_T = self.tokens_T.copy()
        for span in self.media:
            keys_T[span.places_F] = span.content.key
        return keys_T

    @property
    def shift(self) -> int:
        """What is added to the depth of a sampled token to get its position."""
        return 0 if self.axes_3T is None else int(self.axes_3T[0, -1]) - len(self.tokens_T)


Stretches = Mapping[Node, PromptInput]
"""The nodes of one forward in depth-first order, each with one of the prompts that pass through it."""


def tokens_of(stretches: Stretches) -> Ints:
    """Token ids (T,) of the nodes' flat row."""
    return np.concatenate([prompt.tokens_T[node.depth : node.end] for node, prompt in stretches.items()])


def adapters_of(stretches: Stretches) -> list[str | None]:
    """The adapter of each token of the nodes' flat row."""
    return [prompt.adapter for node, prompt in stretches.items() for _ in range(len(node.tokens_T))]


def positions_of(stretches: Stretches) -> Ints:
    """Positions (T,) of the nodes' flat row, or (3, T)."""
    if all(prompt.axes_3T is None for prompt in stretches.values()):
        return np.concatenate([np.arange(node.depth, node.end) for node in stretches])
    parts = []
    for node, prompt in stretches.items():
        plain = np.broadcast_to(np.arange(node.depth, node.end), (3, node.end - node.depth))
        parts.append(plain if prompt.axes_3T is None else prompt.axes_3T[:, node.depth : node.end])
    return np.concatenate(parts, axis=1)


def media_of(stretches: Stretches) -> list[ForestMedia]:
    """The contents in the nodes' flat row; -1 is the place of a feature that lies in a node of another forward."""
    found: dict[str, tuple[Content, list[Ints]]] = {}
    start = 0
    for node, prompt in stretches.items():
        for span in prompt.media:
            here = (span.places_F >= node.depth) & (span.places_F < node.end)
            if here.any():
                places_F = np.where(here, span.places_F - node.depth + start, -1)
                found.setdefault(span.content.hash, (span.content, []))[1].append(places_F)
        start += len(node.tokens_T)
    return [ForestMedia(content, np.stack(places)) for content, places in found.values()]
