"""docs/ab-tests.md: its plan, code and commands run as shown, and its tables are those of the measured results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ab import measured
from pages import assert_true


def test_the_page_is_true(folder: Path) -> None:
    assert_true(measured.PAGE, folder)


def test_its_tables_are_the_results() -> None:
    found = json.loads(measured.RESULTS.read_text())
    page = measured.PAGE.read_text(encoding="utf-8")
    assert measured.with_table(page, found) == page, "run: python tests/ab/measured.py"


def test_the_results_are_what_must_be_shown() -> None:
    found = json.loads(measured.RESULTS.read_text())
    assert all(p > 1e-4 for p in found["uniformity"].values())
    assert found["ramped"]["moved"] == 0
    two = found["two_processes"]
    assert (two["units"], two["exposures"], two["in_another_arm"], two["failed"]) == (two["names"], 2 * two["names"], 0, 0)
    assert all(one["sequence"] <= 0.05 < one["z_test"] for one in found["false_alarms"].values())
    assert found["whole_experiments"]["alarms"] <= 0.05
    assert all(one["found"] == one["times"] for one in found["split_wrong"])
    assert found["split_right"]["found"] / found["split_right"]["times"] <= 0.003


@pytest.mark.parametrize("course", measured.COURSES)
def test_its_false_alarms_again_and_fewer(course: str) -> None:
    assert measured.false_alarms(course, 40, seed=9)["sequence"] <= 0.05


def test_its_power_and_its_splits_again_and_fewer() -> None:
    assert measured.power(0.5, 0.65, 1000, 20)["shown"]["1000"] >= 0.8
    assert measured.planted_split(0.51, 200_000, 3)["found"] == 3
