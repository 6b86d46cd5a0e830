"""`sapwood bench data`: how fast is a file of conversations made ready to train on, and is it the same work?

Two contestants, each in its own process and environment, prepare the same generated file with the same model folder, A B A B …,
each time from nothing. The ids that come out are compared conversation by conversation: a result that did other work is an error, not a
speed. Then ours alone: reading and the ledger, a second start from the cache, and peak memory at `rows` and ten times as many.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.conversations import write_conversations
from bench.picture import Bar, draw
from bench.process import Answer, Contestant
from bench.result import make_folder, write_result
from bench.rounds import Times, alternate, at_least, least, ratio, summary
from bench.same_tokens import compare
from bench.setting import ROOT, busy, commit, machine, peer_python
from sapwood.assets import DEFAULT_MODEL
from sapwood.cli.options import Json, parse, screen_for
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, SapwoodError, StorageError
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model

DESCRIPTION = "Prepare a generated file of conversations, side by side with a peer. Writes data.json and data.svg into --out."
AGAINST = ["trl", "none"]
OURS = "Sapwood"
TRL_PROCESSES: dict[str, int | None] = {"TRL, its default": None, "TRL, 2 processes": 2}
"""`dataset_num_proc` of each TRL contestant."""
BYTES_A_ROW = 12_000
"""Of disk for one row: the file, its cache and the ids to compare, of all contestants at once; generous."""
TEN = 10


@dataclass(frozen=True, kw_only=True)
class DataBench:
    """The data workload."""

    against: str = "trl"
    """The peer: trl, or none to measure Sapwood alone."""
    rows: int = 100_000
    """Conversations in the generated file."""
    rounds: int = 3
    """Rounds of A B A B …; each begins with empty caches."""
    model: str = DEFAULT_MODEL
    """Whose tokenizer and template: a name, a local folder, or a hub id."""
    seed: int = 0
    """Seed of the conversations."""
    memory: bool = True
    """Whether to measure peak memory, too: of both with `rows`, of Sapwood with ten times as many."""
    out: Path = Path("runs/bench")
    """Folder for data.json and data.svg; the generated file and the caches are there meanwhile."""

    def __post_init__(self) -> None:
        if self.against not in AGAINST:
            raise ConfigError(
                f"against: there is no peer {self.against!r}.{did_you_mean(self.against, AGAINST)} Peers: {', '.join(AGAINST)}."
            )
        at_least(1, rows=self.rows, rounds=self.rounds)


def run(words: list[str], json: Json) -> None:
    """Measure, show, write. Raises `SapwoodError` where a contestant fails or has done other work."""
    config = parse(DataBench(), "bench data", words, DESCRIPTION)
    screen = screen_for(json)
    result = measure(config, screen)
    write_result(config.out / "data.json", result)
    picture(config.out / "data.svg", result)
    show(result, screen)
    screen.say(f"Result {config.out / 'data.json'}, picture {config.out / 'data.svg'}")
    json.write(result)


def measure(config: DataBench, screen: Screen) -> dict[str, Any]:
    """All numbers of one result."""
    model = fetch_model(config.model, screen)
    python = peer_python(screen) if config.against == "trl" else None
    _require_room(config)
    busy(screen)
    with tempfile.TemporaryDirectory(dir=config.out, prefix="work-") as folder:
        bench = _Bench(config, screen, Path(folder).resolve(), model.resolve(), python)
        result: dict[str, Any] = {
            "workload": "data",
            "settings": {**asdict(config), "out": str(config.out), "processes_of_trl": TRL_PROCESSES if python else {}},
            "commit": commit(),
            "machine": machine(),
        }
        result |= bench.speed()
        result |= bench.second_start()
        if config.memory:
            result |= bench.memory()
    return result


class _Bench:
    """One measurement: its folder, its file, its contestants."""

    def __init__(self, config: DataBench, screen: Screen, folder: Path, model: Path, python: Path | None) -> None:
        self.config, self.screen, self.folder, self.model, self.python = config, screen, folder, model, python
        self.file = folder / "conversations.jsonl"
        self.small = folder / "small.jsonl"
        self.cpu: dict[str, list[float]] = {}
        screen.title(f"{config.rows:,} conversations, {model.name}")
        self.sha256 = write_conversations(self.file, config.rows, config.seed)
        write_conversations(self.small, 64, config.seed + 1)

    def speed(self) -> dict[str, Any]:
        """A B A B …, and whether it was the same work."""
        with ExitStack() as stack:
            ours = stack.enter_context(self._ours())
            work: dict[str, Callable[[], float]] = {OURS: partial(self._prepare, OURS, ours)}
            versions = {OURS: dict(ours.versions)}
            if self.python is not None:
                trl = stack.enter_context(self._trl())
                versions["TRL"] = dict(trl.versions)
                for name, processes in TRL_PROCESSES.items():
                    work[name] = partial(self._prepare, name, trl, processes=processes)
            with self._instead(self.small):  # what a process does once (imports on first use, first fork) is in no round
                alternate(work, 1)
            self.cpu.clear()
            times = alternate(work, self.config.rounds, self._say)
            alike = self._compare(ours, trl) if self.python is not None else None
            validation = [ours.ask("validate", file=str(self.file)).reply["seconds"] for _ in range(self.config.rounds)]
        return self._speed_result(times, validation, versions, alike)

    def _speed_result(
        self, times: Times, validation: list[float], versions: dict[str, Any], alike: dict[str, Any] | None
    ) -> dict[str, Any]:
        rows = self.config.rows
        peers = [name for name in times if name != OURS]
        return {
            "ratio": ratio(least(times, peers), times[OURS]) if peers else None,
            "ratio_of_each": {name: ratio(times[name], times[OURS]) for name in peers},
            "preparation": {name: {**summary(seconds, rows), "cpu_seconds": self.cpu[name]} for name, seconds in times.items()},
            "ratio_of_cpu_time": ratio(least(self.cpu, peers), self.cpu[OURS]) if peers else None,
            "validation_rows_per_second": rows / statistics.median(validation),
            "validation": summary(validation, rows),
            "same_work": alike,
            "file": {"rows": rows, "bytes": self.file.stat().st_size, "sha256": self.sha256},
            "versions": versions,
        }

    def second_start(self) -> dict[str, Any]:
        """A fresh process on the data and cache that `speed` left: until rows are ready, and with Python and imports before it."""
        found: dict[str, Any] = {}
        last = {"processes": list(TRL_PROCESSES.values())[-1]}  # whose cache the last round left
        for make, more in [(self._ours, {}), *([(self._trl, last)] if self.python is not None else [])]:
            with make() as second:
                reply = self._ask(second, **more).reply
            whole = reply["seconds"] + second.start_seconds
            found[second.name] = {"seconds": reply["seconds"], "with_python_and_imports": whole}
            self.screen.say(f"second start, {second.name}: {reply['seconds']:.2f} s ({whole:.2f} s with Python and imports)")
            if second.name == OURS and not reply["cached"]:
                raise SapwoodError("The second start did not find the rows that the first prepared: has the code changed meanwhile?")
        return {"second_start_seconds": found[OURS]["seconds"], "second_start": found}

    def memory(self) -> dict[str, Any]:
        """Peak memory of a process and its children, a fresh one each: ours with `rows` and ten times as many, the peer's with `rows`."""
        peer = self._peak(self._trl) if self.python is not None else None
        peaks = {str(self.config.rows): self._peak(self._ours)}
        write_conversations(self.file, TEN * self.config.rows, self.config.seed)
        peaks[str(TEN * self.config.rows)] = self._peak(self._ours)
        one, ten = peaks.values()
        above = [peak["peak_bytes"] - peak["idle_bytes"] for peak in (one, ten)]
        return {
            "memory_ratio_ten_fold": ten["peak_bytes"] / one["peak_bytes"],
            "memory_ratio_above_idle": above[1] / above[0] if above[0] > 0 else None,
            "memory": peaks,
            "memory_of_trl": peer,
        }

    def _peak(self, make: Callable[[], Contestant]) -> dict[str, Any]:
        with make() as contestant:
            idle = contestant.resident_bytes()
            self._clear(contestant)
            answer = self._ask(contestant, watch=True)
        rows, peak = answer.reply["rows"], answer.peak_bytes
        self.screen.say(f"{contestant.name}, {rows:,} rows: {peak / 1e6:,.0f} MB at most, {idle / 1e6:,.0f} MB before the file")
        return {"peak_bytes": peak, "idle_bytes": idle, "seconds": answer.reply["seconds"]}

    def _ours(self) -> Contestant:
        return Contestant(
            OURS, [sys.executable, "-m", "bench.peers.sapwood_data"], folder=ROOT, environment={"PYTHONPATH": str(ROOT / "src")}
        )

    def _trl(self) -> Contestant:
        assert self.python is not None
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(self.folder / "hf")}
        return Contestant("TRL", [self.python, "-m", "bench.peers.trl_data"], folder=ROOT, environment=offline)

    @contextmanager
    def _instead(self, file: Path) -> Iterator[None]:
        before, self.file = self.file, file
        try:
            yield
        finally:
            self.file = before

    def _prepare(self, name: str, contestant: Contestant, **more: Any) -> float:
        """From nothing: the caches are emptied first, off the clock."""
        self._clear(contestant)
        reply = self._ask(contestant, **more).reply
        self.cpu.setdefault(name, []).append(reply["cpu_seconds"])
        return float(reply["seconds"])

    def _cache(self, contestant: Contestant) -> Path:
        return self.folder / f"cache-{contestant.name}"

    def _clear(self, contestant: Contestant) -> None:
        shutil.rmtree(self._cache(contestant), ignore_errors=True)
        self._cache(contestant).mkdir()

    def _ask(self, contestant: Contestant, **more: Any) -> Answer:
        return contestant.ask("prepare", file=str(self.file), model=str(self.model), cache=str(self._cache(contestant)), **more)

    def _compare(self, ours: Contestant, trl: Contestant) -> dict[str, Any]:
        """The ids that the last round left in both."""
        files = []
        for contestant in (ours, trl):
            ids, lengths = (self.folder / f"{contestant.name}.{what}.npy" for what in ("ids", "lengths"))
            contestant.ask("dump", ids=str(ids), lengths=str(lengths))
            files.append((ids, lengths))
        return compare(*files)

    def _say(self, number: int, name: str, seconds: float) -> None:
        self.screen.say(f"round {number + 1} of {self.config.rounds}, {name}: {seconds:.2f} s, {self.config.rows / seconds:,.0f} rows/s")


def _require_room(config: DataBench) -> None:
    """Make the folder. Raises `StorageError` where that cannot be, or where its disk is too full."""
    try:
        make_folder(config.out)
    except FileExistsError:
        raise StorageError(f"{config.out}: a file has that name. Choose another folder with --out.") from None
    need = BYTES_A_ROW * config.rows * (TEN if config.memory else 1)
    have = shutil.disk_usage(config.out).free
    if have < need:
        raise StorageError(
            f"{config.out}: this benchmark needs up to {need / 1e9:.1f} GB of disk meanwhile, and {have / 1e9:.1f} GB are free. Choose "
            "a folder on a larger disk with --out, fewer --rows, or --memory False."
        )


def show(result: dict[str, Any], screen: Screen) -> None:
    """The numbers, for people."""
    screen.title("Result")
    for name, taken in result["preparation"].items():
        screen.say(
            f"{name:<18}{taken['per_second']:>9,.0f} rows/s  (median of {len(taken['seconds'])} rounds, {taken['median_seconds']:.2f} s)"
        )
    if result["ratio"] is not None:
        alike = result["same_work"]
        cpu = result["ratio_of_cpu_time"]
        screen.say(f"{result['ratio']:.2f} times as fast as TRL at its best of each round ({cpu:.2f} times by processor time)", "bold")
        screen.say(
            f"same work: {alike['rows']:,} conversations each, {alike['alike']:,} of them token for token alike "
            f"({alike['tokens_ours']:,} and {alike['tokens_peer']:,} tokens)"
        )
    screen.say(f"reading, checks and ledger {result['validation_rows_per_second']:,.0f} rows/s")
    screen.say(f"second start {result['second_start_seconds']:.2f} s")
    if "memory_ratio_ten_fold" in result:
        screen.say(f"peak memory with ten times the rows: {result['memory_ratio_ten_fold']:.2f} times as much")


def picture(path: Path, result: dict[str, Any]) -> Path:
    """The preparation's speed, as bars."""
    rows = result["file"]["rows"]
    bars = [
        Bar(name, taken["per_second"], rows / taken["most_seconds"], rows / taken["least_seconds"], ours=name == OURS)
        for name, taken in result["preparation"].items()
    ]
    where, rounds, versions = result["machine"], result["settings"]["rounds"], result["versions"]
    trl = versions.get("TRL")
    tools = f"; TRL {trl['trl']}, transformers {trl['transformers']}" if trl else ""
    ten_fold = result.get("memory_ratio_ten_fold")
    memory = f"; ten times the rows take {ten_fold:.2f} times the memory" if ten_fold else ""
    notes = [
        f"{result['settings']['model']}; bars are medians of {rounds} alternating round{'s' * (rounds != 1)}, whiskers their spread",
        f"{where['processor']}, {where['usable_cores']} cores; Sapwood at {result['commit'] or 'no commit'}{tools}",
        f"reading, checks and ledger {result['validation_rows_per_second']:,.0f} rows/s; "
        f"second start {result['second_start_seconds']:.2f} s{memory}",
    ]
    times = f": {result['ratio']:.1f} times as fast as TRL" if result["ratio"] is not None else ""
    return draw(path, f"From a file to training rows{times}", f"{rows:,} conversations read, rendered, tokenised", bars, "rows/s", notes)
