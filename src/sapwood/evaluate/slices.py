"""Parts of the items by themselves: tags in, for each part what two arms reach there, their paired difference, and what may be believed.

Declared slices come first; each further tag that some items carry is shown as well, for where to look. All p-values are adjusted
together (Benjamini and Hochberg), so that of the parts that are marked few are marked by chance. A declared slice without items is a
row that says so. Left out on purpose: combinations of tags that nobody named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sapwood.evaluate.experiment import ArmScore
from sapwood.evaluate.verdict import ArmResult, arm_result, paired_scores
from sapwood.requirements import Requirements, Slice
from sapwood.stats import Difference, benjamini_hochberg

MOST_TAGS = 40
"""Undeclared tags that are shown, the most frequent first."""

Tags = Mapping[str, Sequence[str]]
"""Item → its tags."""


@dataclass(frozen=True, slots=True)
class SliceResult:
    """One part. `difference` is None where no item of it was scored on both sides."""

    slice: Slice
    declared: bool
    items: int
    """Items that carry its tags."""
    before: ArmResult
    after: ArmResult
    difference: Difference | None
    adjusted: float | None = None
    """The p-value among those of all slices."""
    marked: bool = False
    """Whether the difference holds among all slices at once."""


def slice_results(
    before: Sequence[ArmScore], after: Sequence[ArmScore], tags: Tags, requirements: Requirements
) -> tuple[list[SliceResult], int]:
    """(every part, tags that are not shown). `before` and `after` hold one score an item."""
    declared = list(requirements.slices)
    named = {tuple(one.tags) for one in declared}
    tasks = requirements.tasks if len(requirements.tasks) > 1 else ()  # a single one is all items, whatever they carry
    declared += [Slice(name=task.name, tags=(tag,)) for task in tasks if ((tag := f"task:{task.name}"),) not in named]
    known = {tuple(one.tags) for one in declared}
    counts = Counter(tag for carried in tags.values() for tag in dict.fromkeys(carried))
    loose = [Slice(name=tag, tags=(tag,)) for tag, count in counts.most_common() if (tag,) not in known and 1 < count < len(tags)]
    level = requirements.decision.level
    found = [_of(one, place < len(declared), before, after, tags, level) for place, one in enumerate([*declared, *loose[:MOST_TAGS]])]
    tested = [place for place, one in enumerate(found) if one.difference is not None]
    adjusted = benjamini_hochberg([difference.p_value for one in found if (difference := one.difference) is not None])
    for place, value in zip(tested, adjusted, strict=True):
        found[place] = replace(found[place], adjusted=value, marked=value <= 1 - level)
    return found, max(0, len(loose) - MOST_TAGS)


def inside(scores: Sequence[ArmScore], one: Slice, tags: Tags) -> list[ArmScore]:
    """The scores of items that carry all of the slice's tags."""
    return [score for score in scores if set(one.tags) <= set(tags.get(score.item, ()))]


def _of(
    one: Slice, declared: bool, before: Sequence[ArmScore], after: Sequence[ArmScore], tags: Tags, level: float
) -> SliceResult:  # fmt: skip
    mine, theirs = inside(after, one, tags), inside(before, one, tags)
    items = sum(set(one.tags) <= set(carried) for carried in tags.values())
    return SliceResult(one, declared, items, arm_result(theirs, level), arm_result(mine, level), paired_scores(theirs, mine, level))
