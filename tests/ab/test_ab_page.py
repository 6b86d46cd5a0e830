"""docs/ab-tests.md: its plan, code and commands run as shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ab import measured
from pages import assert_true


def test_the_page_is_true(folder: Path) -> None:
    assert_true(measured.PAGE, folder)


@pytest.mark.parametrize("course", measured.COURSES)
def test_its_false_alarms_again_and_fewer(course: str) -> None:
    assert measured.false_alarms(course, 40, seed=9)["sequence"] <= 0.05


def test_its_power_and_its_splits_again_and_fewer() -> None:
    assert measured.power(0.5, 0.65, 2000, 20)["shown"]["2000"] >= 0.9
    assert measured.planted_split(0.51, 200_000, 3)["found"] == 3
