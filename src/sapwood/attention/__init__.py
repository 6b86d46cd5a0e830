"""Ancestor attention: a token attends to itself, to what is before it in its node, and to all of its ancestors.

In: queries, keys and values of one layer for the flat row of a forest. Out: the same attention as one row at a time.
`dense` is the reference, `plain` runs anywhere, `flash` is the fast path on a CPU; `plan.TreeAttention` picks one.
`interface` registers the whole with transformers, which calls it in every layer with the keyword `forest`.
"""

from sapwood.attention.flash import flash_is_available
from sapwood.attention.interface import NAME, Attention, for_text, register
from sapwood.attention.plan import TreeAttention

__all__ = ["NAME", "Attention", "TreeAttention", "flash_is_available", "for_text", "register"]
