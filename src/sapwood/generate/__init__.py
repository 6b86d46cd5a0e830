"""Generation: one engine in one process with training, over a radix tree of key and value caches.

In: prompts and how to sample. Out: completions, in the order of the prompts, by the `Sampler` protocol of `records`; or, from a session
that prompts are added to over time, tokens as they are sampled. Each beginning that prompts share is computed once, and kept for later
prompts while there is memory. A sequence's tokens do not depend on what else is in the batch, up to the rounding of its logits.
"""

from sapwood.generate.answer import Answer, ChatLike
from sapwood.generate.engine import Engine
from sapwood.generate.session import Session

__all__ = ["Answer", "ChatLike", "Engine", "Session"]
