"""What runs there are: a folder in, a few facts of each run directory in it out. Reads files alone; loads no model and no torch.

A folder that is no run of ours, or cannot be read, is named with the reason and never left out in silence. Links are named and
not followed. Left out on purpose: an index. The folders are the truth, and they are few.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from sapwood.errors import ConfigError, DataError, SapwoodError, storage
from sapwood.evaluate.history import Entry, Told, history
from sapwood.evaluate.report_files import RunFiles, mapping, number, read_run, text_of
from sapwood.run import MARK, is_being_written, require_known, version_of

Kind = Literal["sft", "dpo", "grpo", "trl", "decide", "eval", "study", "sweep"]
State = Literal["finished", "stopped", "running"]

SIGNS = ("identity.json", "environment.json", "metrics.jsonl", "scores.jsonl", "ledger.jsonl")
"""Files of which a run of version 0 holds at least one beside its config."""
SWEEP = "sweep.json"
PARTS = {"checkpoints": "checkpoints", "adapter": "adapter", "model": "model", "export": "exports", "points": "runs of the sweep"}
"""Folder in a run directory → its words."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run directory in a line. What is not known is None or empty; sizes are bytes."""

    path: Path
    kind: Kind
    schema: int
    state: State
    model: str
    data: tuple[str, ...]
    steps: int
    planned: int | None
    held_out_loss: float | None
    """Nats a token, of the last evaluation."""
    verdict: str
    """In a few words."""
    bytes: int
    begun: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "path": str(self.path), "data": list(self.data), "begun": self.begun.isoformat() if self.begun else None}


@dataclass(frozen=True)
class Runs:
    """The runs in a folder, newest first, and what else lies there."""

    folder: Path
    runs: list[RunFacts]
    strangers: dict[str, str]
    """Name of each folder that is no readable run → why."""

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"folder": str(self.folder), "runs": [run.to_dict() for run in self.runs], "not_runs": self.strangers}

    def __str__(self) -> str:
        return "\n".join(f"{run.path}: {run.state}, {run.verdict or 'no verdict'}" for run in self.runs) or f"no runs in {self.folder}"


def runs(folder: str | Path = Path("runs")) -> Runs:
    """Every run directory in `folder`, which for a sweep is the sweep's. Raises `ConfigError` where there is no such folder."""
    folder = Path(folder)
    place = folder / "points" if (folder / SWEEP).is_file() else folder
    if not place.is_dir():
        raise ConfigError(f"There is no folder {folder}. Runs are made by `sapwood sft my.jsonl`; name the folder that they lie in.")
    found, strangers = [], {}
    with storage(place, "read"):
        entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_symlink():
            strangers[entry.name] = "a link, which is not followed"
        elif entry.is_dir():
            try:
                found.append(facts_of(entry))
            except SapwoodError as error:
                strangers[entry.name] = str(error)
            except OSError as error:
                strangers[entry.name] = f"cannot be read: {error.strerror}"
    found.sort(key=lambda run: (run.begun or datetime.fromtimestamp(0, UTC), run.path.name), reverse=True)
    return Runs(folder, found, strangers)


def history_of(found: Runs) -> list[Entry]:
    """The series of all runs in a folder that hold scores, oldest first. Raises `DataError` where one cannot be read."""
    told = []
    for run in reversed(found.runs):
        if (run.path / "scores.jsonl").is_file() and (run.path / "config.yaml").is_file():
            when = run.begun.strftime("%Y-%m-%d %H:%M") if run.begun else ""
            told.append(Told(read_run(run.path, only=("scores.jsonl",)), when, run.kind, run.verdict))
    return history(told)


def require_run(path: Path) -> None:
    """Raise `DataError` where a folder is no run directory of ours, `CheckpointError` where it is of a newer version."""
    if path.is_symlink():
        raise DataError(f"{path} is a link. Name the run directory itself.")
    if not path.is_dir():
        raise DataError(f"There is no run directory {path}. `sapwood runs` lists those that there are.")
    old = (path / "config.yaml").is_file() and any((path / sign).is_file() for sign in SIGNS)
    if not old and not _is_marked(path):
        raise DataError(f"{path} is not a run directory of Sapwood: it holds neither {MARK} nor a config.yaml with a run's records.")
    require_known(path)


def _is_marked(path: Path) -> bool:
    """Whether run.json is ours, and not a file that anybody calls so."""
    return (path / MARK).is_file() and not (path / MARK).is_symlink() and version_of(path) > 0


def facts_of(path: Path) -> RunFacts:
    """The facts of one run directory. Raises like `require_run`, and `DataError` where nothing in it says what it is."""
    require_run(path)
    if (path / SWEEP).is_file():
        return _facts_of_sweep(path)
    files = read_run(path, only=("metrics.jsonl",)) if (path / "config.yaml").is_file() else None
    if files is None:
        return _bare_facts(path)
    if files.notices and not files.config:
        raise DataError(files.notices[0])
    kind = kind_of(files)
    train = [record for record in files.metrics if record.get("kind", "train") == "train"]
    steps = max((int(number(record.get("step")) or 0) for record in train), default=0)
    done = is_finished(files, kind)
    return RunFacts(
        path=path,
        kind=kind,
        schema=version_of(path),
        state="running" if is_being_written(path) else "finished" if done else "stopped",
        model=text_of(files.config.get("model") or mapping(files.config.get("start_from")).get("model")),
        data=tuple(map(text_of, files.config.get("data") or ())),
        steps=steps,
        planned=_planned(files, train, steps, done),
        held_out_loss=last_held_out_loss(files),
        verdict=in_a_few_words(files),
        bytes=sum(disk_by_part(path).values()),
        begun=begun(path),
    )


def _bare_facts(path: Path) -> RunFacts:
    """Of a run that was stopped before it had settings, or was trained from objects in Python."""
    trained = any((path / name).is_dir() for name in ("adapter", "model"))
    state: State = "running" if is_being_written(path) else "finished" if trained else "stopped"
    return RunFacts(
        path=path,
        kind="trl" if (path / "settings.json").is_file() else "sft",
        schema=version_of(path),
        state=state,
        model="",
        data=(),
        steps=0,
        planned=None,
        held_out_loss=None,
        verdict="",
        bytes=sum(disk_by_part(path).values()),
        begun=begun(path),
    )


def _facts_of_sweep(path: Path) -> RunFacts:
    with storage(path / SWEEP, "read"):
        try:
            sweep = mapping(orjson.loads((path / SWEEP).read_bytes()))
        except orjson.JSONDecodeError:
            raise DataError(f"{path / SWEEP}: damaged. Name the sweep again to write it anew.") from None
    tune, winner = mapping(sweep.get("tune")), mapping(sweep.get("winner"))
    points = sweep.get("points") or []
    done = len(sweep.get("table") or [])
    return RunFacts(
        path=path,
        kind="sweep",
        schema=version_of(path),
        state="running" if is_being_written(path) else "finished" if winner else "stopped",
        model=text_of(tune.get("model")),
        data=tuple(map(text_of, tune.get("data") or ())),
        steps=done,
        planned=len(points),
        held_out_loss=number(winner.get("loss")),
        verdict=f"best: {text_of(winner.get('name'))}" if winner else "",
        bytes=sum(disk_by_part(path).values()),
        begun=begun(path),
    )


def kind_of(files: RunFiles) -> Kind:
    """Which verb made a run, by the knobs in its config."""
    if "pilot" in files.config:
        return "decide"
    if (files.path / "plan.json").is_file() and "candidate" in files.config:
        return "study"
    if "train" not in files.config:
        return "eval"
    if files.learns_by is not None:
        return files.learns_by
    return "trl" if (files.path / "settings.json").is_file() else "sft"


def is_finished(files: RunFiles, kind: Kind) -> bool:
    """Whether everything that the verb leaves is there."""
    if kind == "decide":
        return bool(files.decision)
    if kind in ("eval", "study"):
        return (files.path / "report.html").is_file()
    trained = any((files.path / name).is_dir() for name in ("adapter", "model"))
    return trained and (kind == "trl" or bool(files.verdict))


def _planned(files: RunFiles, train: list[dict[str, Any]], steps: int, done: bool) -> int | None:
    said = number(train[-1].get("num_steps")) if train else None
    named = number(mapping(files.config.get("train")).get("max_steps"))
    return int(said) if said is not None else steps if done and steps else int(named) if named is not None else None


def last_held_out_loss(files: RunFiles) -> float | None:
    """Of the last evaluation during training."""
    losses = [number(record.get("loss")) for record in files.metrics if record.get("kind") == "eval"]
    return losses[-1] if losses else None


def in_a_few_words(files: RunFiles) -> str:
    """Such as "better, +31.0 points", or the answer of a decision."""
    if files.decision:
        return text_of(files.decision.get("answer"))
    word = text_of(files.verdict.get("decision"))
    mean = number(mapping(files.verdict.get("difference")).get("mean"))
    return f"{word}, {100 * mean:+.1f} points" if word and mean is not None else word


def begun(path: Path) -> datetime | None:
    """When a run was begun: as it says, else when its config was written."""
    try:
        return datetime.fromisoformat(text_of(mapping(orjson.loads((path / MARK).read_bytes())).get("begun")))
    except (OSError, ValueError):
        pass
    config = path / "config.yaml"
    return datetime.fromtimestamp(config.stat().st_mtime, UTC) if config.is_file() else None


def disk_by_part(path: Path) -> dict[str, int]:
    """Bytes by part: checkpoints, adapter, model, exports, and all else as records. Links count nothing."""
    found: dict[str, int] = {}
    for file in files_below(path):
        first = file.relative_to(path).parts
        part = PARTS.get(first[0], "records") if len(first) > 1 else "records"
        found[part] = found.get(part, 0) + file.lstat().st_size
    return found


def files_below(path: Path) -> Iterator[Path]:
    """Every ordinary file in a folder and below it; links are neither followed nor given."""
    for folder, _, names in os.walk(path, followlinks=False):
        for name in names:
            file = Path(folder, name)
            if not file.is_symlink() and file.is_file():
                yield file
