"""Images and sounds in a conversation, and what becomes of them in a row.

`Media` is what a message holds: where it stands in the text and where its bytes lie. `Content` is the same thing ready
for a model: the hash by which it is shared, and its features, which are read only when they are needed, so that memory
stays bounded. `MediaSpan` says at which places of a row a content's features stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MediaKind = Literal["image", "audio", "video"]
MEDIA_KINDS: tuple[MediaKind, ...] = ("image", "audio", "video")


@dataclass(frozen=True, slots=True)
class Media:
    """One image, sound or video of a message."""

    kind: MediaKind
    at: int
    """Offset in the message's content at which it stands; several may stand at one place, in order."""
    uri: str
    """A local path, or `data:…;base64,…`."""
    digest: str = ""
    """sha256 of the file's bytes, where a reader has seen them: what tells two images with one name apart."""

    @property
    def address(self) -> str:
        """Its place for people to read: bytes that stand in the address itself are named by their hash."""
        return f"sha256:{self.digest}" if self.uri[:5].lower() == "data:" else self.uri

    @property
    def identity(self) -> str:
        """What it is known by in hashes: its bytes where they were read, else its place."""
        return f"{self.kind}:{self.digest or self.uri}"


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """One image or sound as a model's processor made it. Equal hashes mean equal features."""

    kind: MediaKind
    hash: str
    """sha256, in hex, of its bytes and of the processor's settings."""
    length: int
    """Places that its features take in a row."""
    load: Callable[[], Mapping[str, NDArray[Any]]]
    """Reads the processor's arrays anew: the inputs of the model's tower."""
    grid: tuple[int, int, int] | None = None
    """Frames, rows and columns of its features, for models that count positions on several axes."""

    @property
    def key(self) -> int:
        """Stands for it in a sequence of tokens: negative, so that it is no token's id; 63 bits of the hash."""
        return -1 - (int(self.hash[:16], 16) >> 1)


@dataclass(frozen=True, slots=True, eq=False)
class MediaSpan:
    """Where one content stands in a row."""

    places_F: NDArray[np.int64]
    """Ascending places, in the row's inputs, of its features; other tokens (a tile's number, say) may stand between them."""
    content: Content

    @property
    def start(self) -> int:
        """Its first place."""
        return int(self.places_F[0])

    @property
    def length(self) -> int:
        """Number of its places."""
        return len(self.places_F)
