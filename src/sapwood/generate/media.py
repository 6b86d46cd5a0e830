"""Images and sounds of prompts in a prefill: the tree compares contents by hash, the model gets tokens, features and positions.

In: the prompts of one call. Out: for the nodes of one forward their token ids, their positions (three a token where a model
counts in time, height and width), and the contents that stand in them; for each prompt how far its text's positions lie
from its depth. Each content of a forward is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sapwood.forest import ForestMedia, axis_positions
from sapwood.generate.tree import Node
from sapwood.records import Content, Prompt

Ints = NDArray[np.int64]


class PromptInputs:
    """The prompts of one call, by the index that nodes know them by."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts
        self._ids = [np.array(prompt.ids, dtype=np.int64) for prompt in prompts]
        self._axes = {
            index: axis_positions(len(prompt.ids) + 1, prompt.media)
            for index, prompt in enumerate(prompts)
            if any(span.content.grid is not None for span in prompt.media)
        }

    @property
    def keys(self) -> list[Ints]:
        """What is compared where prompts share beginnings."""
        return [_keys(ids_T, prompt) for ids_T, prompt in zip(self._ids, self._prompts, strict=True)]

    def shift(self, index: int) -> int:
        """What is added to the depth of a sampled token to get its position."""
        axes = self._axes.get(index)
        return 0 if axes is None else int(axes[0, -1]) - len(self._ids[index])

    def tokens(self, nodes: Sequence[Node]) -> Ints:
        """Token ids (T,) of the nodes' flat row."""
        return np.concatenate([self._ids[node.sample][node.depth : node.end] for node in nodes])

    def positions(self, nodes: Sequence[Node]) -> Ints:
        """Positions (T,) of the nodes' flat row, or (3, T)."""
        if not self._axes:
            return np.concatenate([np.arange(node.depth, node.end) for node in nodes])
        parts = []
        for node in nodes:
            axes = self._axes.get(node.sample)
            plain = np.broadcast_to(np.arange(node.depth, node.end), (3, node.end - node.depth))
            parts.append(plain if axes is None else axes[:, node.depth : node.end])
        return np.concatenate(parts, axis=1)

    def media(self, nodes: Sequence[Node]) -> list[ForestMedia]:
        """The contents in the nodes' flat row; -1 is the place of a feature that lies in a node of another forward."""
        found: dict[str, tuple[Content, list[Ints]]] = {}
        start = 0
        for node in nodes:
            for span in self._prompts[node.sample].media:
                here = (span.places_F >= node.depth) & (span.places_F < node.end)
                if here.any():
                    places_F = np.where(here, span.places_F - node.depth + start, -1)
                    found.setdefault(span.content.hash, (span.content, []))[1].append(places_F)
            start += len(node.tokens_T)
        return [ForestMedia(content, np.stack(places)) for content, places in found.values()]


def _keys(ids_T: Ints, prompt: Prompt) -> Ints:
    keys_T = ids_T.copy()
    for span in prompt.media:
        keys_T[span.places_F] = span.content.key
    return keys_T
