"""A start is timed until its event and no longer, and one that never comes to it says what it said."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from bench.start import FIRST_EVER, OURS, StartBench, measure, until, until_output

from sapwood.errors import SapwoodError
from sapwood.recipes.screen import Screen
from tiny.folder import write_model


@pytest.mark.slow
def test_both_kinds_of_start_come_to_their_event(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", context=512)
    found = measure(StartBench(against="none", model=str(model), rows=16, rounds=1), Screen(quiet=True))
    assert found["ratio_train"] is found["ratio_answer"] is None
    for kind in ("train", "answer"):
        assert set(found[kind]) == {OURS, FIRST_EVER}
        assert all(taken["median_seconds"] > 0 for taken in found[kind].values())


def test_the_clock_stops_at_the_event_and_the_process_is_ended(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        f"import sys, time, pathlib; pathlib.Path({str(mark)!r}).write_text(sys.stdin.readline()); print('x', flush=True); time.sleep(600)"
    )
    begin = time.perf_counter()
    seen = until([sys.executable, "-c", code], {}, mark.exists)
    assert until_output([sys.executable, "-c", code], {}) > 0
    assert 0 < seen < time.perf_counter() - begin < 300, "the sleep was not waited for"


def test_a_start_without_its_event_says_why() -> None:
    with pytest.raises(SapwoodError, match="no such model"):
        until_output([sys.executable, "-c", "raise SystemExit('no such model')"], {})
    with pytest.raises(SapwoodError, match="ended without its first step or word"):
        until([sys.executable, "-c", ""], {}, lambda: False)
