"""The pace: no minute ever holds more than was allowed, nothing waits without need, and a pause holds for all."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from sapwood.remote.pacing import MINUTE, Pace
from sapwood.remote.sampler import seed_of
from sapwood.remote.sending import retry_after

GAPS = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 60)), min_size=1, max_size=60)


@given(GAPS, st.integers(0, 5), st.integers(0, 80))
def test_no_minute_holds_more_than_allowed(gaps: list[tuple[float, int]], requests: int, tokens: int) -> None:
    pace, now, sent = Pace(requests, tokens), 0.0, list[tuple[float, float]]()
    for gap, cost in gaps:
        now += gap
        while (seconds := pace.wait(now, cost)) > 0:
            assert seconds <= MINUTE + 1e-6
            now = max(now + seconds, math.nextafter(now, math.inf))
        sent.append((now, min(cost, tokens or cost)))
    for start, _ in sent:
        inside = [cost for when, cost in sent if start <= when < start + MINUTE - 1e-6]
        assert not requests or len(inside) <= requests
        assert not tokens or sum(inside) <= tokens


def test_without_limits_nothing_waits_and_a_pause_holds_for_all() -> None:
    pace = Pace()
    assert all(pace.wait(0.0, 1e9) == 0 for _ in range(1000))
    pace.pause(0.0, 5.0)
    pace.pause(1.0, 1.0)
    assert pace.wait(2.0, 1) == 3.0
    assert pace.wait(5.0, 1) == 0.0


def test_a_server_may_ask_for_seconds_or_for_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert retry_after("7", now) == 7
    assert retry_after("Thu, 01 Jan 2026 00:00:30 GMT", now) == 30
    assert retry_after("Wed, 31 Dec 2025 23:00:00 GMT", now) == 0
    assert retry_after("soon", now) == retry_after(None, now) == 0


@given(st.integers(), st.integers(0, 1000))
def test_samples_have_seeds_of_their_own(seed: int, k: int) -> None:
    assert 0 <= seed_of(seed, k) < 2**31
    assert seed_of(seed, k) != seed_of(seed, k + 1)
