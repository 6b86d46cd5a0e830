"""What a pass will cost, before the model is there: bytes and seconds as functions of what goes through it.

In: sizes that were counted and speeds that were measured (see `measuring`). Out: for any forest, its memory and its time.

    memory     program + weights + adapters + optimizer + the larger of (activations, all gradients) + head
    seconds    layers · (a pass + its tokens + its attention pairs) + head places + one update a step

Left out on purpose: anything that depends on the rows' content. The rehearsal measures the real step and says how far this was off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sapwood.forest import Forest
from sapwood.model.adapters import Parameters

GIB = 2**30
BUSY = 0.15
"""Share of the processors that other programs take from which a machine is called busy."""


@dataclass(frozen=True, slots=True)
class Work:
    """What goes through the model: sums over forests."""

    passes: int = 0
    row_tokens: int = 0
    """Tokens of the rows as given, shared ones in every row."""
    tokens: int = 0
    """Tokens that are computed."""
    pairs: int = 0
    """Pairs of a token and a token it attends to."""
    places: int = 0
    """Places whose next token is predicted."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.passes + other.passes,
            self.row_tokens + other.row_tokens,
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.places + other.places,
        )

    def times(self, factor: float) -> Work:
        """So much of it."""
        return Work(*(round(value * factor) for value in (self.passes, self.row_tokens, self.tokens, self.pairs, self.places)))


def work_of(forests: Iterable[Forest]) -> Work:
    """The work of passes over forests."""
    total = Work()
    for forest in forests:
        start_M, end_M = forest.nodes_M[:, 0], forest.nodes_M[:, 1]
        length_M = end_M - start_M
        pairs = int((length_M * (length_M + 1) // 2 + length_M * (forest.subtree_end_M - end_M)).sum())
        total += Work(1, forest.row_tokens, forest.num_tokens, pairs, len(np.unique(forest.hidden_N)))
    return total


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a few layers of the model took on this machine. Of one layer, unless it says otherwise."""

    pass_seconds: float
    """Forward and backward: what a pass takes beyond its tokens."""
    token_seconds: float
    pair_seconds: float
    place_seconds: float
    """The whole head, forward and backward, a place."""
    forward_share: float
    """Time of a forward pass without gradients, as a share of forward and backward."""
    update_seconds: float
    """The optimizer's update, a trained number."""
    layer_bytes: float
    """What is kept for the backward pass, a token, what the allocator loses between tensors included."""
    ends_bytes: float
    """What is held beside the layers, a token: for embedding and last norm, and for a moment in the backward pass."""
    fixed_bytes: int
    """What a large pass brings beside all that, however large it is."""
    kernels_bytes: int
    """What the first pass brings into memory for good: kernels and their buffers."""
    head_bytes: int
    """What the head holds beside its weights for a moment, in all."""
    shares: bool
    """Whether the model shares prefixes."""
    others: float = 0.0
    """Share of the processors that other programs took meanwhile: times are then longer than those of a quiet machine."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What was counted, in bytes."""

    parameters: Parameters
    layers: int
    program: int
    """What the process holds before the model is loaded."""
    weights: int
    adapters: int
    """What is trained beside the weights."""
    trained: int
    """All that is trained, adapters or weights."""
    wide: bool
    """Whether the weights take more than two bytes each."""
    gradients: int
    embedding: int
    """Gradient of an embedding or a head that is trained whole: it stands from the first layer of the way back on."""
    optimizer: int
    """Moments and masters, from the first update on."""
    update: int
    """What an update holds for a moment beyond all that."""
    loading: int
    """What loading holds beyond the weights."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Memory of the largest pass, in bytes, by what takes it."""

    program: int
    weights: int
    adapters: int
    optimizer: int
    gradients: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.program + self.weights + self.adapters + self.optimizer + self.gradients + self.activations + self.head


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Sizes and speeds of one model as it is to be trained, on one machine."""

    sizes: Sizes
    measured: Measured | None
    """None where no part of the model could be measured: then only what was counted is known."""
    unmeasured: str = ""
    """Why not."""
    steps: int = 0
    """Of the run that was planned, where one was."""
    step_seconds: float = 0.0
    """Of an average one of them, its update included."""

    def parts(self, tokens: int, *, first: bool = False) -> Parts:
        """Memory at the peak of a step whose largest pass has `tokens`. `first`: of the first pass, before there are moments.

        Gradients of all weights grow while activations are freed, so that only the larger of both counts; of what an update
        holds, only what the pass before it did not.
        """
        sizes, one = self.sizes, self.measured
        state = 0 if first else sizes.optimizer
        activations = head = kernels = 0
        gradients = sizes.gradients
        if one is not None:
            kept, head, kernels = int(tokens * sizes.layers * one.layer_bytes), one.head_bytes, one.kernels_bytes + one.fixed_bytes
            activations = kept + int(tokens * one.ends_bytes)
            gradients = max(sizes.embedding, sizes.gradients + sizes.embedding - kept)
        if not first:
            gradients += max(0, sizes.gradients + sizes.update - (activations + gradients + head))
        return Parts(
            program=sizes.program + kernels,
            weights=sizes.weights,
            adapters=sizes.adapters,
            optimizer=state,
            gradients=gradients,
            activations=activations,
            head=head,
        )

    def peak(self, tokens: int, *, first: bool = False) -> int:
        """Bytes that the process holds at its peak, loading included."""
        sizes = self.sizes
        return max(self.parts(tokens, first=first).total, sizes.program + sizes.weights + sizes.loading)

    def largest_pass(self, room: int) -> int:
        """The most tokens of a pass that stay within `room` bytes of memory; 0 where not one does."""
        most = 0
        step = 1 << 24
        while step:
            if self.peak(most + step) <= room:
                most += step
            step //= 2
        return most

    def seconds(self, work: Work) -> float:
        """Forward and backward of passes; without the update. Nothing is known, and 0 is returned, where nothing was measured."""
        one = self.measured
        if one is None:
            return 0.0
        layer = work.passes * one.pass_seconds + work.tokens * one.token_seconds + work.pairs * one.pair_seconds
        return self.sizes.layers * layer + work.places * one.place_seconds

    def forward_seconds(self, work: Work) -> float:
        """The same passes without gradients."""
        return self.seconds(work) * self.measured.forward_share if self.measured is not None else 0.0

    @property
    def update_seconds(self) -> float:
        """One update of all trained parameters."""
        return self.measured.update_seconds * self.sizes.parameters.trained if self.measured is not None else 0.0


def duration(seconds: float) -> str:
    """`42 s`, `17 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
