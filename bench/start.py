"""`sapwood bench start`: how long people wait, from the command to the first training step and to the first word of an answer.

Each start is a fresh process, from its creation to the event, so Python, imports, reading rows and loading the model are all in it.
Ours take one step more than a peer's on the way: rows are checked and the worst-case step is tried before the first real one.
Two kinds of start of ours: the first ever (an empty cache: rows are prepared, layers measured, kernels compiled), and any later one.

    train    `sapwood sft FILE` until its first step stands in metrics.jsonl; a script around TRL's SFTTrainer until its first step ended
    answer   `sapwood chat MODEL` until the first byte of the answer; a script around transformers' `generate` with a streamer, likewise
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench.conversations import Words
from bench.result import make_folder, write_result
from bench.rounds import alternate, at_least, ratio, summary
from bench.setting import ROOT, busy, commit, machine, peer_python
from sapwood.assets import DEFAULT_MODEL
from sapwood.cli.options import Json, parse, screen_for
from sapwood.errors import SapwoodError
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model
from sapwood.run import step_records

OURS, FIRST_EVER = "Sapwood", "Sapwood, the first time"
PEERS = {"train": "TRL", "answer": "transformers"}


@dataclass(frozen=True, kw_only=True)
class StartBench:
    """Two kinds of start."""

    against: str = "peers"
    """peers, or none."""
    rows: int = 200
    """Conversations of the training file."""
    rounds: int = 3
    """Rounds of A B."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id."""
    out: Path = Path("runs/bench")
    """Folder for start.json."""

    def __post_init__(self) -> None:
        at_least(8, rows=self.rows)
        at_least(1, rounds=self.rounds)


def run(words: list[str], json: Json) -> None:
    """Measure, show, write. Raises `SapwoodError` where a start never comes to its event."""
    config = parse(StartBench(), "bench start", words, "From the command to the first training step, and to the first word of an answer.")
    screen = screen_for(json)
    make_folder(config.out)
    busy(screen)
    found = measure(config, screen)
    result = {"workload": "start", "settings": asdict(config), **found, "commit": commit(), "machine": machine()}
    path = config.out / "start.json"
    write_result(path, result)
    for kind, peer in PEERS.items():
        if found[f"ratio_{kind}"] is not None:
            screen.say(f"{kind}: {found[f'ratio_{kind}']:.2f} times as fast as {peer}", "bold")
    screen.say(f"Result {path}")
    json.write(result)


def measure(config: StartBench, screen: Screen) -> dict[str, Any]:
    """`ratio_train`, `ratio_answer` (a peer's seconds into ours), and every contestant's times."""
    model = fetch_model(config.model, screen).resolve()
    python = peer_python(screen) if config.against == "peers" else None
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sapwood-start-") as folder:
        here = Path(folder)
        rows = here / "rows.jsonl"
        rows.write_bytes(b"".join(_row(place) for place in range(config.rows)))
        for kind in PEERS:
            work = {FIRST_EVER: _ours(kind, model, rows, here, anew=True), OURS: _ours(kind, model, rows, here, anew=False)}
            if python is not None:
                work[PEERS[kind]] = _peer(kind, python, model, rows, here)
            work[OURS]()  # leaves the cache that a later start finds
            times = alternate(work, config.rounds, partial(_say, screen, kind))
            found[f"ratio_{kind}"] = ratio(times[PEERS[kind]], times[OURS]) if python is not None else None
            found[kind] = {name: summary(taken, 1) for name, taken in times.items()}
    return found


def _say(screen: Screen, kind: str, number: int, name: str, seconds: float) -> None:
    screen.say(f"{kind}, round {number + 1}, {name}: {seconds:.1f} s")


def _row(place: int) -> bytes:
    words = Words(np.random.default_rng(place))
    turns = [{"role": "user", "content": words.text(40)}, {"role": "assistant", "content": words.text(20)}]
    return orjson.dumps({"messages": turns}) + b"\n"


def _ours(kind: str, model: Path, rows: Path, folder: Path, *, anew: bool) -> Callable[[], float]:
    cache, run = folder / "cache", folder / "run"
    sapwood = [sys.executable, "-m", "sapwood"]

    def start() -> float:
        for old in (run, *([cache] if anew else [])):
            shutil.rmtree(old, ignore_errors=True)
        environment = {"PYTHONPATH": str(ROOT / "src"), "SAPWOOD_CACHE": str(cache)}
        if kind == "answer":
            return until_output([*sapwood, "chat", str(model), "--max-new-tokens", "8"], environment)
        command = [*sapwood, "sft", str(rows), "--model", str(model), "--out", str(run), "--max-steps", "4", "--scorer", "none"]
        return until(command, environment, lambda: _stepped(run / "metrics.jsonl"))

    return start


def _stepped(metrics: Path) -> bool:
    return metrics.is_file() and any(record.get("kind") == "train" for record in step_records(metrics))


def _peer(kind: str, python: Path, model: Path, rows: Path, folder: Path) -> Callable[[], float]:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(folder / "hf")}
    command = [str(python), "-m", f"bench.peers.{'trl' if kind == 'train' else 'transformers'}_start", str(model)]
    return lambda: until_output([*command, *([str(rows), str(folder / "trl")] if kind == "train" else [])], environment)


def until_output(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds from the process's start to the first byte that it writes to standard output; it is asked one short question."""
    return _timed(command, environment, lambda process: process.stdout is not None and bool(process.stdout.read(1)))


def until(command: Sequence[str], environment: Mapping[str, str], happened: Callable[[], bool]) -> float:
    """Seconds from the process's start until `happened`, looked at every hundredth of a second."""

    def wait(process: subprocess.Popen[bytes]) -> bool:
        while not (seen := happened()) and process.poll() is None:
            time.sleep(0.01)
        return seen or happened()

    return _timed(command, environment, wait)


def _timed(command: Sequence[str], environment: Mapping[str, str], wait: Callable[[subprocess.Popen[bytes]], bool]) -> float:
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **environment},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(b"Say hello.\n")
            process.stdin.close()  # else one that has nothing to say would wait for the next question
            seen = wait(process)
            seconds = time.perf_counter() - begin
        finally:
            _end(process)
        if not seen:
            log.seek(0)
            words = log.read()[-1500:].decode(errors="replace")
            raise SapwoodError(f"{' '.join(command[:4])} … ended without its first step or word. Its last words:\n{words or '(none)'}")
    return seconds


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it has started."""
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
