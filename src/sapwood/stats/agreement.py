"""How far raters agree beyond chance.

In: what each rater said of each unit, gaps allowed. Out: Krippendorff's alpha for names (nominal data).
Left out on purpose: ordinal and interval distances, until a rubric with scales needs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence


def krippendorff_alpha(ratings: Mapping[Hashable, Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha of nominal ratings: 1 is full agreement, 0 what chance gives.

    `ratings` holds for each unit what its raters said, one entry a rater who rated it. Units with fewer than two
    ratings cannot be compared and are left out. None where nothing can be said: no unit with two ratings, or one
    value alone in all of them. Source: Krippendorff (2011), "Computing Krippendorff's alpha-reliability", §C.
    """
    totals: Counter[Hashable] = Counter()
    disagreeing = 0.0
    for values in ratings.values():
        if len(values) < 2:
            continue
        counts = Counter(values)
        totals.update(counts)
        disagreeing += (len(values) ** 2 - sum(count**2 for count in counts.values())) / (len(values) - 1)
    number = totals.total()
    by_chance = number**2 - sum(count**2 for count in totals.values())
    if by_chance == 0:
        return None
    return 1 - (number - 1) * disagreeing / by_chance
