"""What rewards made of one sampled answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sapwood.records.evaluation import Item
from sapwood.records.sampling import Completion


@dataclass(frozen=True, slots=True)
class Rewarded:
    """The rewards of one completion. None is a reward that judged nothing, never a 0."""

    total: float | None
    """Sum of the weighted parts that judged; None where none did."""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    """Each reward by name, before its weight."""
    solved: bool | None = None
    """Whether the first reward found it wholly right (1 or more); None where that one did not judge."""
    notes: tuple[str, ...] = ()
    """What failed, a sentence each: an exception, a value that is no number."""


Judge = Callable[[Sequence[Item], Sequence[Completion]], list[Rewarded]]
"""All rewards of a run on a batch of answers: item i was asked, and completion i is what came."""
