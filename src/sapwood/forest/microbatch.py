"""A step's examples in, micro-batches out.

Examples are sorted by their tokens and cut into contiguous runs, so that what shares a beginning stays together.
The cut is the cheapest one (dynamic programming) under a budget of unique tokens, where a cut costs the beginnings
it makes twice and a fixed overhead. Of equally cheap ones it is the most even: two halves take less memory than a full pass and a
rest. An example is never cut; one that exceeds the budget stands alone.
Which examples a step holds is not decided here: sharing must never change the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sapwood.forest.build import Forest, plant
from sapwood.forest.keys import common_prefix, sort_key
from sapwood.records import Example

PASS_OVERHEAD = 64
"""What one more forward and backward pass costs beyond its tokens, in tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Examples (indices into the step's list) that go through the model together, and their forest.

    The forest's rows are those of the examples, in this order.
    """

    examples: tuple[int, ...]
    forest: Forest


def unique_tokens(example: Example, *, share: bool = True) -> int:
    """Tokens of one example once its own rows share their beginnings; without `share`, those of all its rows."""
    return plant(example.rows, min_saving=1).num_tokens if share else sum(row.length - 1 for row in example.rows)


def cut(examples: Sequence[Example], budget: int, *, share: bool = True) -> list[MicroBatch]:
    """Cut one step's examples into micro-batches of at most `budget` unique tokens each (an oversized example stands alone).

    Counted is what would be left if every common token were shared; a pass holds a few more where a branching saves too
    little to be made (`MIN_SAVING`). Without `share`, rows stand side by side and no token is shared.
    """
    order = sorted(range(len(examples)), key=lambda index: sort_key(examples[index].rows[0].keys_T))
    sizes = [unique_tokens(examples[index], share=share) for index in order]
    shared = [0, *(_shared(examples[a], examples[b]) if share else 0 for a, b in itertools.pairwise(order))]
    batches = []
    for first, last in _cheapest_cut(sizes, shared, budget):
        chosen = tuple(order[first:last])
        rows = [row for index in chosen for row in examples[index].rows]
        batches.append(MicroBatch(chosen, plant(rows, share=share)))
    return batches


def _shared(left: Example, right: Example) -> int:
    return max(common_prefix(a.keys_T, right.rows[0].keys_T) for a in left.rows)


def _cheapest_cut(sizes: list[int], shared: list[int], budget: int) -> list[tuple[int, int]]:
    """Runs [first, last) of least total cost, then of least squared sizes; each within the budget unless it holds one example."""
    best: list[tuple[int, int, int]] = [(0, 0, 0)]
    for last in range(1, len(sizes) + 1):
        choices = []
        tokens = 0
        for first in range(last - 1, -1, -1):
            # taking `first` in saves what it shares with its right neighbour
            tokens += sizes[first] - (shared[first + 1] if first + 1 < last else 0)
            if tokens > budget and first < last - 1:
                break
            cost, squares, _ = best[first]
            choices.append((cost + tokens + PASS_OVERHEAD, squares + tokens * tokens, first))
        best.append(min(choices))
    runs, last = [], len(sizes)
    while last > 0:
        first = best[last][2]
        runs.append((first, last))
        last = first
    return runs[::-1]
