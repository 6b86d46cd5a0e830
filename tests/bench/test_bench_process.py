"""A contestant as a real child process: replies, failures with its own words, memory, and no process left behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bench.process import Contestant
from bench.setting import ROOT

from sapwood.errors import SapwoodError

SCRIPT = Path(__file__).parent / "scripted_contestant.py"
MEGABYTES = 64_000_000


def scripted() -> Contestant:
    return Contestant("Scripted", [sys.executable, SCRIPT], folder=ROOT, environment={"PYTHONPATH": str(ROOT)})


@pytest.fixture
def contestant() -> Iterator[Contestant]:
    with scripted() as running:
        yield running


def test_replies_come_whole_although_the_contestant_prints(contestant: Contestant) -> None:
    assert contestant.versions == {"scripted": "1"}
    for words in ("naïve – ✓", "line\nbreak"):
        answer = contestant.ask("say", seconds=1.5, words=words)
        assert answer.reply["cpu_seconds"] >= 0
        assert {key: answer.reply[key] for key in ("seconds", "heard")} == {"seconds": 1.5, "heard": words}


def test_a_failure_is_told_in_the_contestants_own_words_and_it_goes_on(contestant: Contestant) -> None:
    with pytest.raises(SapwoodError, match=r"(?s)Scripted failed at `fail`.*row 7 is odd"):
        contestant.ask("fail", row=7)
    assert contestant.ask("say", seconds=0, words="still here").reply["heard"] == "still here"


def test_a_death_is_told_with_its_last_words(contestant: Contestant) -> None:
    with pytest.raises(SapwoodError, match=r"(?s)ended with code 3.*last words"):
        contestant.ask("die")


@pytest.mark.parametrize("child", [False, True])
def test_peak_memory_counts_the_process_and_its_children(child: bool, contestant: Contestant) -> None:
    idle = contestant.resident_bytes()
    answer = contestant.ask("take_memory", watch=True, bytes=MEGABYTES, child=child)
    assert answer.peak_bytes - idle > 0.9 * MEGABYTES
    assert answer.peak_bytes - idle < 3 * MEGABYTES


def test_what_cannot_start_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(SapwoodError, match=r"Nobody: could not be started .*nothing-here"),
        Contestant("Nobody", [tmp_path / "nothing-here"], folder=ROOT),
    ):
        pass
    with (
        pytest.raises(SapwoodError, match=r"(?s)Nobody ended with code 1 .*ModuleNotFoundError"),
        Contestant("Nobody", [sys.executable, "-c", "import no_such_peer"], folder=ROOT),
    ):
        pass
    with pytest.raises(SapwoodError, match="no JSON"), Contestant("Nobody", [sys.executable, "-c", "print('hello')"], folder=ROOT):
        pass


def test_the_environment_is_added_to_and_taken_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_PARENT", "1")
    code = (
        "import json, os; print(json.dumps({'ready': {key: os.environ.get(key, 'none') for key in ('OF_THE_PARENT', 'NEW')}}), flush=True)"
    )
    for environment, found in (({"NEW": "2"}, ["1", "2"]), ({"OF_THE_PARENT": None}, ["none", "none"])):
        with Contestant("Told", [sys.executable, "-c", code], folder=ROOT, environment=environment) as told:
            assert list(told.versions.values()) == found


def test_nothing_is_left_running() -> None:
    with scripted() as running:
        assert running._process is not None
        child = psutil.Process(running._process.pid)
    assert not child.is_running()
    begin = time.perf_counter()
    with Contestant("Deaf", [sys.executable, "-c", "import time; print('{\"ready\": {}}', flush=True); time.sleep(60)"], folder=ROOT):
        pass
    assert time.perf_counter() - begin < 30
