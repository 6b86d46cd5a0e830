"""Did two contestants do the same work? Conversation by conversation, token by token.

Ours ends a conversation at the token where generation stops; a peer that renders it whole also has what the template writes behind
that token. So: alike means that ours is the beginning of theirs, and at most `TAIL` tokens follow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sapwood.errors import SapwoodError

TAIL = 4
ALIKE = 0.99
"""Share of conversations that must be alike, else the comparison is refused."""

Files = tuple[Path, Path]
"""The flat ids and the number of tokens of each conversation, as .npy."""


def compare(ours: Files, peer: Files) -> dict[str, Any]:
    """Counts of both. Raises `SapwoodError` where rows or tokens show that the work was not the same."""
    (ids_ours, lengths_ours), (ids_peer, lengths_peer) = ((np.load(ids, mmap_mode="r"), np.load(lengths)) for ids, lengths in (ours, peer))
    if len(lengths_ours) != len(lengths_peer):
        raise SapwoodError(
            f"The contestants did not do the same work: {len(lengths_ours):,} conversations came out of ours, {len(lengths_peer):,} of "
            "the peer's. Their speeds cannot be compared."
        )
    different = _different(ids_ours, lengths_ours, ids_peer, lengths_peer)
    alike = len(lengths_ours) - len(different)
    if alike < ALIKE * len(lengths_ours):
        raise SapwoodError(
            f"The contestants did not do the same work: only {alike:,} of {len(lengths_ours):,} conversations have the same tokens; "
            f"the first that differs is row {different[0] + 1}. Their speeds cannot be compared; choose a model whose template renders "
            "a conversation as inference does."
        )
    return {
        "rows": len(lengths_ours),
        "alike": alike,
        "tokens_ours": int(lengths_ours.sum()),
        "tokens_peer": int(lengths_peer.sum()),
        "tail_tokens": sorted({int(more) for more in np.delete(lengths_peer - lengths_ours, different)}),
    }


def _different(ids_a: np.ndarray, lengths_a: np.ndarray, ids_b: np.ndarray, lengths_b: np.ndarray) -> list[int]:
    """Places of the conversations of which a is not the beginning of b, or b goes on for more than `TAIL` tokens."""
    begins_a, begins_b = np.cumsum(lengths_a) - lengths_a, np.cumsum(lengths_b) - lengths_b
    found = []
    for place, (a, n, b, m) in enumerate(zip(begins_a, lengths_a, begins_b, lengths_b, strict=True)):
        if not n <= m <= n + TAIL or not np.array_equal(ids_a[a : a + n], ids_b[b : b + n]):
            found.append(place)
    return found
