"""The axes of `sapwood bench growth` are the work that they say they are, and its picture shows every point."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import bench.growth as growth
import pytest
from bench.growth import PROMPT, GrowthBench, measure, trees
from bench.growth_picture import TITLES, draw, heights
from hypothesis import given
from hypothesis import strategies as st

from sapwood.recipes.screen import Screen

SVG = "{http://www.w3.org/2000/svg}"


@given(st.integers(1, 9), st.integers(0, 90), st.integers(2, 90))
def test_both_arms_are_the_same_rows(rows: int, prompt: int, own: int) -> None:
    shared, apart = trees(1000, rows, prompt, own)
    assert shared.row_tokens == sum(forest.row_tokens for forest in apart) == rows * (prompt + own)
    assert sum(forest.num_tokens for forest in apart) == rows * (prompt + own - 1), "apart computes all that is predicted from"
    assert shared.num_tokens <= rows * (prompt + own - 1)
    assert prompt < 16 or rows == 1 or shared.num_tokens <= prompt + rows * (own - 1), "a beginning worth sharing is computed once"
    assert len(shared.target_E) == sum(len(forest.target_E) for forest in apart) == rows * min(growth.TRAINED, own - 1)


def test_a_result_has_every_point_and_its_picture_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "PROMPT", 24)
    monkeypatch.setattr(growth, "OWN", 8)
    monkeypatch.setattr(growth, "LENGTHS", (16, 32))
    monkeypatch.setattr(growth, "ROWS", (1, 4))
    monkeypatch.setattr(growth, "WIDTHS", (192, 192, 192))
    found = measure(GrowthBench(layers=1, rounds=1), Screen(quiet=True))
    assert list(found) == ["rows", "length", "sharing", "width"]
    assert [point["at"] for point in found["rows"]] == [1, 4]
    assert [point["token_ratio"] for point in found["length"]] == [1, 1], "one row shares nothing"
    assert found["sharing"][0]["ratio"] == 1
    assert found["sharing"][-1]["token_ratio"] > 3
    assert all(point["seconds"][arm] > 0 for points in found.values() for point in points for arm in ("forest", "apart"))
    root = ElementTree.parse(draw(found, tmp_path / "growth.svg")).getroot()
    assert len(list(root.iter(f"{SVG}circle"))) == sum(len(found[axis]) for axis in TITLES)
    measured, by_tokens = heights("length", found["length"])
    assert (measured[0], by_tokens) == (1, [1, 1])
    assert PROMPT == 448
