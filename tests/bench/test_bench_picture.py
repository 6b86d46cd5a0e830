"""The picture is well-formed, says what it was given, and draws lengths that are true."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench.picture import WIDTH, Bar, draw
from hypothesis import given
from hypothesis import strategies as st

SVG = "{http://www.w3.org/2000/svg}"


def test_words_are_escaped_and_lengths_are_true(tmp_path: Path) -> None:
    bars = [Bar("ours & <theirs>", 200.0, 150.0, 250.0, ours=True), Bar("peer", 100.0, 90.0, 120.0)]
    root = ElementTree.parse(draw(tmp_path / "a.svg", "A < B", "small & clear", bars, "rows/s", ["one", "two"])).getroot()
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert words == ["A < B", "small & clear", "ours & <theirs>", "200 rows/s", "peer", "100 rows/s", "one", "two"]
    ground, *drawn = [float(rect.get("width", "0")) for rect in root.iter(f"{SVG}rect")]
    assert ground == WIDTH
    assert drawn[0] == pytest.approx(2 * drawn[1], abs=0.2)


@given(st.lists(st.floats(0.0, 1e7), min_size=1, max_size=6))
def test_everything_stays_inside(values: list[float]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        bars = [Bar(f"arm {n}", value, value / 2, value * 2) for n, value in enumerate(values)]
        root = ElementTree.parse(draw(Path(folder) / "a.svg", "t", "s", bars, "tokens/s", [])).getroot()
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x", "0")) + float(rect.get("width", "0")) <= WIDTH
        assert float(rect.get("y", "0")) + float(rect.get("height", "0")) <= float(root.get("height", "0"))
