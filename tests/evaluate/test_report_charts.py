"""The report's drawings: every value where it belongs, and nothing outside."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sapwood.evaluate import charts
from sapwood.evaluate.charts import LONGEST_LINE, Series

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
SHARES = st.floats(-1, 1)


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.booleans())
def test_a_scale_holds_its_values_in_order_with_few_round_ticks(values: list[float], pad: bool) -> None:
    scale = charts.scale_over(values, pad=pad)
    slack = 1e-6 * (scale.high - scale.low)
    assert scale.low - slack <= min(values) <= max(values) <= scale.high + slack
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    assert len(scale.ticks) <= 12
    steps = {round((b - a) / (scale.high - scale.low), 6) for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)}
    assert len(steps) <= 1


@given(SHARES, SHARES, SHARES, st.none() | st.floats(0.001, 1))
def test_the_difference_is_drawn_against_zero(a: float, b: float, c: float, unseen: float | None) -> None:
    low, mean, high = sorted((a, b, c))
    svg = ElementTree.fromstring(charts.difference_plot(mean, low, high, unseen=unseen, label="<&>"))
    zero = [float(line.get("x1", "")[:-1]) for line in svg.iter("line") if line.get("class") == "zero"]
    dot = float(next(svg.iter("circle")).get("cx", "")[:-1])
    assert len(zero) == 1
    if abs(mean) > 1e-3:
        assert (dot > zero[0]) == (mean > 0)
    assert (next(svg.iter("rect"), None) is not None) == (unseen is not None)


@given(st.floats(0, 1), st.floats(0.05, 1))
def test_a_bar_is_as_long_as_its_rate(rate: float, top: float) -> None:
    assume(rate <= top)
    svg = ElementTree.fromstring(charts.bar(rate, None, None, top))
    assert float(next(svg.iter("rect")).get("width", "")[:-1]) == pytest.approx(100 * rate / top, abs=0.01)


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=900))
def test_a_thinned_line_keeps_its_span_and_mean(ys: list[float | None]) -> None:
    line = Series("loss", "ink", tuple(float(x) for x in range(len(ys))), tuple(ys))
    thin = charts.thinned(line)
    assert len(thin.xs) == len(thin.ys) <= LONGEST_LINE
    known, kept = [y for y in ys if y is not None], [y for y in thin.ys if y is not None]
    assert bool(known) == bool(kept)
    if known:
        assert min(known) - 1e-9 <= min(kept) <= max(kept) <= max(known) + 1e-9


def test_gaps_break_the_line_and_lone_points_stay_visible() -> None:
    line = Series("loss", "ink", (0.0, 1.0, 2.0, 3.0, 4.0), (1.0, 2.0, None, 3.0, None))
    drawn = charts.curve([line], height=100, label="loss", x_name="step")
    path = re.search(r'class="ink" d="([^"]*)"', drawn)
    assert path is not None
    assert path[1].count("M") == 2
    assert path[1].count("L") == 1


def test_charts_without_a_number_are_empty() -> None:
    assert charts.curve([Series("loss", "ink", (1.0,), (None,))], height=100, label="loss", x_name="step") == ""


@given(st.lists(st.none() | st.floats(-10, 10), max_size=60), st.integers(1, 21))
def test_a_running_mean_stays_within_its_neighbours(ys: list[float | None], window: int) -> None:
    for place, value in enumerate(charts.smoothed(ys, window)):
        near = [y for y in ys[max(0, place - window // 2) : place + window // 2 + 1] if y is not None]
        assert (value is None) == (ys[place] is None)
        if value is not None:
            assert min(near) - 1e-9 <= value <= max(near) + 1e-9


@pytest.mark.parametrize(("value", "digits", "text"), [(31.2, 0, "+31"), (-0.04, 1, "0.0"), (-2.5, 1, "−2.5"), (0.0, 0, "0")])
def test_signs_are_real_and_absent_at_zero(value: float, digits: int, text: str) -> None:
    assert charts.signed(value, digits) == text
