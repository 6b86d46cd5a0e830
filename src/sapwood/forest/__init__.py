"""The forest: rows that share beginnings, as flat numpy arrays in depth-first order.

In: rows of (prompt, completion, weights). Out: a `Forest` in which each distinct beginning stands once, with the
places that predict something (`targets`) and which rows use each prediction, with what weight (`uses`);
and the cut of a step's examples into micro-batches. The arrays never change once made.
"""

from sapwood.forest.build import MIN_SAVING, Forest, plant
from sapwood.forest.keys import common_prefix, sort_key
from sapwood.forest.media import ForestMedia, axis_positions
from sapwood.forest.microbatch import MicroBatch, cut, unique_tokens

__all__ = [
    "MIN_SAVING",
    "Forest",
    "ForestMedia",
    "MicroBatch",
    "axis_positions",
    "common_prefix",
    "cut",
    "plant",
    "sort_key",
    "unique_tokens",
]
