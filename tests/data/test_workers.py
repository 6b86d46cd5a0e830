"""Other processes prepare rows as this one does, name the row that they fail at, and memory stays where it is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from chat.chat_folders import CHATML, TEMPLATES, load, write_folder
from data.chat_rows import conversations, write
from sapwood.chat import Chat
from sapwood.data import preparing
from sapwood.data import workers as workers_module
from sapwood.data.packed import PARTS
from sapwood.data.preparing import Preparer, batches
from sapwood.data.reading import scan
from sapwood.data.workers import prepared_chunks, workers_for
from sapwood.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_PREPARED", str(tmp_path / "prepared"))


@pytest.mark.parametrize("name", ["toolful", "empty-thought"])
def test_workers_make_the_same_chunks(tmp_path: Path, name: str) -> None:
    chat = load(tmp_path / "model", name)
    found = scan([write(tmp_path / "rows.jsonl", conversations(random.Random(1), 1200))])
    preparer = Preparer(chat, found.recipe.columns, "topic")
    here, there = ([*prepared_chunks(preparer, batches(found.recipe.rows()), count)] for count in (0, 2))
    assert len(here) == len(there) > 4
    for one, other in zip(here, there, strict=True):
        assert (one.examples, one.refused, one.files) == (other.examples, other.refused, other.files)
        for part in PARTS:
            assert one.parts[part] == other.parts[part], part


def test_a_planned_chat_is_the_same(tmp_path: Path) -> None:
    for name in TEMPLATES:
        chat = load(tmp_path / name, name)
        for one in (chat, chat.with_tools_in_system()):
            plan = one.plan()
            assert plan is not None
            assert Chat.planned(plan).fingerprint == one.fingerprint


@pytest.mark.parametrize("count", [0, 2])
def test_a_row_that_fails_unforeseen_is_named(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = load(tmp_path / "model", "chatml")
    greedy = "from sapwood.data import preparing, workers\n"
    greedy += "made = preparing.made_of\n"
    greedy += "preparing.made_of = lambda chat, record: made(chat, record) if record.source.line != 433 else bytearray(10 ** 15)\n"
    monkeypatch.setattr(workers_module, "COMMAND", greedy + "workers.serve()")
    made = preparing.made_of
    monkeypatch.setattr(preparing, "made_of", lambda chat, record: made(chat, record) if record.source.line != 433 else bytearray(10**15))
    found = scan([write(tmp_path / "rows.jsonl", [{"prompt": f"q{number}", "completion": "a"} for number in range(700)])])
    with pytest.raises(DataError, match=r"rows\.jsonl:433: preparing this row failed with MemoryError") as caught:
        list(prepared_chunks(Preparer(chat, {}, None), batches(found.recipe.rows()), count))
    assert "Traceback" not in str(caught.value)
    assert "leave the row out" in str(caught.value)


def test_a_row_that_kills_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = load(tmp_path / "model", "chatml")
    deadly = "from sapwood.data import preparing, workers; import os, orjson\n"
    deadly += "made = preparing.made_of\n"
    deadly += "preparing.made_of = lambda chat, record: os._exit(9) if record.source.line == 301 else made(chat, record)\n"
    monkeypatch.setattr(workers_module, "COMMAND", deadly + "workers.serve()")
    found = scan([write(tmp_path / "rows.jsonl", [{"prompt": f"q{number}", "completion": "a"} for number in range(700)])])
    with pytest.raises(DataError, match=r"rows\.jsonl:301: the process that prepared this row ended \(with exit status 9\)"):
        list(prepared_chunks(Preparer(chat, {}, None), batches(found.recipe.rows()), 2))


def test_a_passing_want_of_memory_is_overcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = load(tmp_path / "model", "chatml")
    once = tmp_path / "once"
    dying = "from sapwood.data import preparing, workers; import os, pathlib\n"
    dying += "made = preparing.made_of\n"
    dying += f"once = pathlib.Path({str(once)!r})\n"
    dying += "preparing.made_of = lambda chat, record: (once.touch(), os._exit(9)) if record.source.line == 301 and not once.exists() "
    dying += "else made(chat, record)\nworkers.serve()"
    monkeypatch.setattr(workers_module, "COMMAND", dying)
    found = scan([write(tmp_path / "rows.jsonl", [{"prompt": f"q{number}", "completion": "a"} for number in range(700)])])
    chunks = list(prepared_chunks(Preparer(chat, {}, None), batches(found.recipe.rows()), 2))
    assert once.exists()
    assert sum(chunk.examples for chunk in chunks) == 700


def test_no_process_is_left_when_the_caller_stops(tmp_path: Path) -> None:
    import psutil

    chat = load(tmp_path / "model", "chatml")
    found = scan([write(tmp_path / "rows.jsonl", conversations(random.Random(1), 2000))])
    before = {child.pid for child in psutil.Process().children()}
    chunks = prepared_chunks(Preparer(chat, {}, None), batches(found.recipe.rows()), 2)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert {child.pid for child in psutil.Process().children()} <= before


def test_few_rows_start_no_process() -> None:
    assert workers_for(100) == workers_for(2000) == 0


CHILD = """
import sys, json, resource
from pathlib import Path
import psutil, threading, time
from sapwood.chat import Chat
from sapwood.recipes.prepare import DataConfig, prepare_files
from sapwood.recipes.screen import Screen
if __name__ == "__main__":
    peak, done = 0, threading.Event()
    me = psutil.Process()
    def watch():
        global peak
        while not done.is_set():
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    pass
            peak = max(peak, total)
            time.sleep(0.02)
    watcher = threading.Thread(target=watch)
    watcher.start()
    found = prepare_files([sys.argv[1]], Chat.load(Path(sys.argv[2])), DataConfig(), Screen(quiet=True))
    lines = sum(1 for _ in found.ledger.records())
    longest = max(example.length for example in found.examples[::10])
    done.set()
    watcher.join()
    print(json.dumps([peak, lines, longest]))
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """This process and its children together, for ten times the rows; the few bytes a row that stay are far below the rows."""
    write_folder(tmp_path / "model", CHATML)
    peaks = []
    for count in (5_000, 50_000):
        file = tmp_path / f"{count}.jsonl"
        with file.open("w") as lines:
            for number in range(count):
                lines.write(json.dumps({"prompt": f"{number} " + "sap " * 12, "completion": "bark " * 6}) + "\n")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", CHILD, str(file), str(tmp_path / "model")], env=environment, capture_output=True, text=True, check=True
        )
        peak, records, _ = json.loads(run.stdout)
        assert records == count + 1
        peaks.append(peak)
    assert peaks[1] < 1.3 * peaks[0], [round(peak / 2**20) for peak in peaks]
