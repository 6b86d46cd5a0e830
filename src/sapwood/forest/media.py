"""Images and sounds of a forest: where each distinct content stands, and positions on several axes.

In: rows with media, and the places of their tokens in the flat row. Out: each content once, with all places at which its
features must stand; and for models that need it, three positions a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sapwood.records import Content, MediaSpan, Row

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ForestMedia:
    """One content and where it stands: it is encoded once, however many rows hold it."""

    content: Content
    places_OF: Ints
    """Places in the flat row, one line for each occurrence (a shared one is one occurrence); -1 is a place outside the row."""


def gather_media(rows: Sequence[Row], places: Iterable[Ints]) -> tuple[ForestMedia, ...]:
    """Each distinct content of `rows`, in order of first use. `places` are those of each row's inputs, by depth."""
    contents: dict[str, Content] = {}
    found: dict[str, dict[int, Ints]] = {}
    for row, places_T in zip(rows, places, strict=True):
        for span in row.media:
            contents.setdefault(span.content.hash, span.content)
            here = places_T[span.places_F]
            found.setdefault(span.content.hash, {})[int(here[0])] = here
    return tuple(ForestMedia(contents[key], np.stack(list(occurrences.values()))) for key, occurrences in found.items())


def needs_axes(rows: Sequence[Row]) -> bool:
    """Whether any row holds media whose positions run on several axes."""
    return any(span.content.grid is not None for row in rows for span in row.media)


def axis_positions(length: int, media: Sequence[MediaSpan]) -> Ints:
    """Positions (3, length) in time, height and width, as Qwen2-VL counts them (arXiv:2409.12191 §2.1).

    Text counts on, alike on all axes. An image's tokens lie on its grid, beginning at the next position; what follows it
    goes on from there by the longer of its sides.
    """
    positions_3T = np.empty((3, length), dtype=np.int64)
    place = position = 0
    for span in sorted((span for span in media if span.content.grid is not None), key=lambda span: span.start):
        assert span.content.grid is not None
        frames, height, width = span.content.grid
        assert span.length == frames * height * width == span.places_F[-1] - span.start + 1, "a grid's tokens stand together"
        positions_3T[:, place : span.start] = position + np.arange(span.start - place)
        position += span.start - place
        positions_3T[:, span.places_F] = position + np.indices((frames, height, width)).reshape(3, -1)
        place = span.start + span.length
        position += max(height, width)
    positions_3T[:, place:] = position + np.arange(length - place)
    return positions_3T
