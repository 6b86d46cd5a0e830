"""What two sequences share: the order in which equal beginnings stand together, and how long a beginning is.

A key is compared token by token. Text shares by token id alone; a medium (an image, a sound) shares by the hash of
its content, which takes the place of the placeholder's id in the sequence handed to these functions (`Row.keys_T`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sort_key(tokens_T: NDArray[np.int64]) -> bytes:
    """Bytes whose order is the order of the token sequences; a beginning sorts before what continues it."""
    return tokens_T.astype(">u8").tobytes()


def common_prefix(left_T: NDArray[np.int64], right_T: NDArray[np.int64]) -> int:
    """Number of tokens with which both sequences begin."""
    shorter = min(len(left_T), len(right_T))
    different = left_T[:shorter] != right_T[:shorter]
    return int(different.argmax()) if different.any() else shorter
