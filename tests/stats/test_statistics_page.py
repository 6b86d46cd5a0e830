"""docs/statistics.md is what the run measures, and what it measures keeps what is promised."""

from __future__ import annotations

import pytest
import statistics_page
from statistics_page import BOUNDS, CLUSTERS, SCENARIOS, SIZES, clustered, coverage, whole_rule


def test_the_page_is_what_was_measured() -> None:
    assert statistics_page.PAGE.read_text(encoding="utf-8") == statistics_page.page(), "run: python tests/stats/statistics_page.py"


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("n", SIZES)
def test_every_rate_is_covered_as_promised(method: str, n: int) -> None:
    assert coverage(method, n)[1] >= BOUNDS[method]


def test_fifty_items_at_a_rate_of_97_percent() -> None:
    assert coverage("Wilson", 50)[0][0.97] == pytest.approx(0.937, abs=5e-4)
    assert coverage("Clopper–Pearson", 50)[0][0.97] == pytest.approx(0.983, abs=5e-4)
    assert coverage("± 1.96 standard errors", 50)[0][0.97] == pytest.approx(0.79, abs=0.01), "why it is not used"


@pytest.mark.parametrize(("groups", "size", "copied"), CLUSTERS)
def test_clusters_raise_no_false_differences(groups: int, size: int, copied: float) -> None:
    assert clustered(groups, size, copied, True) <= 0.06


def test_clusters_that_nobody_named_do() -> None:
    assert clustered(40, 5, 0.7, False) > 0.15


def test_the_rule_ships_nothing_that_is_no_better_and_refuses_nothing_that_is() -> None:
    for name in SCENARIOS:
        said = whole_rule(name)
        if name.startswith(("no better", "worse")) or "lose" in name:
            assert said["ship"] <= 0.035, name
        else:
            assert said["don't ship"] <= 0.01, name
            assert said["ship"] >= 0.8 or "12 points" in name, name
    assert whole_rule("better by 20 points, general skills lose 12 points")["don't ship"] >= 0.6
