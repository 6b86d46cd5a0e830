"""Generation: one engine in one process with training, over a radix tree of key and value caches.

In: prompts and how to sample. Out: completions, in the order of the prompts, by the `Sampler` protocol of `records`.
Each beginning that prompts share is computed once. A sequence's tokens do not depend on what else is in the batch, up to
the rounding of its logits.
"""

from sapwood.generate.answer import ChatLike
from sapwood.generate.engine import Engine

__all__ = ["ChatLike", "Engine"]
