"""What the report reads: a run directory in, its files as plain records out, and a list of what was missing or damaged.

A report must open whatever became of the run, so damage is a sentence on the page, never an exception and never
a silence. Only a folder without `config.yaml` is refused: it is no run. Left out on purpose: checkpoints (their
weights say nothing to a reader) and everything outside the folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
import yaml

from sapwood.errors import DataError, StorageError, storage
from sapwood.run import SCHEMA, read_records, step_records

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """A run directory as read. Absent files are empty; `notices` says in plain words what could not be read."""

    path: Path
    config: Record
    environment: Record
    verdict: Record
    decision: Record
    """Of `sapwood decide`; empty for other runs."""
    scores: list[Record]
    items: list[Record]
    metrics: list[Record]
    samples: list[Record]
    ledger: list[Record]
    adapter: list[tuple[str, int]]
    """(file name, bytes)"""
    notices: list[str] = field(default_factory=list)
    identity: Record = field(default_factory=dict)
    """Hashes of what the run was begun with."""
    people: Record = field(default_factory=dict)
    """What people said of its answers, as `sapwood review export` leaves it."""
    rollouts: list[Record] = field(default_factory=list)
    """Sampled answers of reinforcement learning, the best and the worst of each step."""
    preflight: Record = field(default_factory=dict)
    """What was seen before step 1 of reinforcement learning."""
    costs: Record = field(default_factory=dict)
    """What the answers of an evaluation cost, where prices were given."""

    @property
    def learns_by(self) -> Literal["grpo", "dpo"] | None:
        """Which verb learned from rewards or preferences; None for other runs."""
        if "train" not in self.config or "start_from" not in self.config:
            return None
        return "grpo" if "rewards" in self.config else "dpo"


RECORDS = ("scores.jsonl", "items.jsonl", "metrics.jsonl", "samples.jsonl", "ledger.jsonl", "rollouts.jsonl")


def read_run(path: Path, only: Collection[str] = RECORDS) -> RunFiles:
    """Read what a report needs; of the records `only` some, where the others may be long and are not wanted.

    Raises `DataError` if `path` is no run directory (it has no config.yaml).
    """
    if not (path / "config.yaml").is_file():
        raise DataError(
            f"{path} is not a run folder: it has no config.yaml. Name the folder that a training run printed, for example runs/sft-1."
        )
    notices: list[str] = []

    def lines(name: str, read: Callable[[Path], list[Record]] = read_records) -> list[Record]:
        if name not in only:
            return []
        try:
            return read(path / name)
        except (DataError, StorageError) as error:
            notices.append(f"{error} The page leaves {name} out.")
        except (KeyError, TypeError, AttributeError, OSError) as error:
            notices.append(f"{path / name}: its records do not have the form Sapwood writes ({error!r}). The page leaves {name} out.")
        return []

    return RunFiles(
        path=path,
        config=_config(path / "config.yaml", notices),
        environment=_object(path / "environment.json", notices),
        verdict=_object(path / "verdict.json", notices),
        decision=_object(path / "decision.json", notices),
        scores=lines("scores.jsonl"),
        items=lines("items.jsonl"),
        metrics=lines("metrics.jsonl", step_records),
        samples=lines("samples.jsonl"),
        ledger=lines("ledger.jsonl"),
        adapter=_listing(path / ("model" if (path / "model").is_dir() and not (path / "adapter").is_dir() else "adapter")),
        notices=notices,
        identity=_object(path / "identity.json", notices),
        people=_object(path / "people.json", notices),
        rollouts=lines("rollouts.jsonl"),
        preflight=_object(path / "preflight.json", notices),
        costs=_object(path / "costs.json", notices),
    )


def number(value: Any) -> float | None:
    """A finite number, or None for anything else: what JSON may hold where a measurement was meant."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: Any) -> Record:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str:
    """`value` as a person reads it: text as it is, nothing as nothing, anything else as JSON, on one line if it is short."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    line = orjson.dumps(value, default=str).decode()
    return line if len(line) <= 120 else orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()


def flat(record: Record, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value as text) of a nested record, in order. Values that look like credentials are hidden."""
    rows: list[tuple[str, str]] = []
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += flat(value, f"{name}.")
        elif any(word in str(key).lower() for word in ("api_key", "apikey", "password", "secret", "access_token", "auth_token")) and value:
            rows.append((name, "(hidden: looks like a credential)"))
        elif isinstance(value, list) and not any(isinstance(entry, dict | list) for entry in value):
            rows.append((name, ", ".join(map(str, value))))
        else:
            rows.append((name, "none" if value is None else str(value).lower() if isinstance(value, bool) else text_of(value)))
    return rows


def _config(path: Path, notices: list[str]) -> Record:
    try:
        with storage(path, "read"):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, StorageError) as error:
        notices.append(f"{path}: not readable as YAML ({' '.join(str(error).split())}). The page leaves the settings out.")
        return {}
    return mapping(content)


def _object(path: Path, notices: list[str]) -> Record:
    if not path.is_file():
        return {}
    try:
        with storage(path, "read"):
            content = orjson.loads(path.read_bytes())
    except (orjson.JSONDecodeError, StorageError) as error:
        notices.append(f"{path}: not readable as JSON ({error}). The page leaves it out.")
        return {}
    if not isinstance(content, dict):
        notices.append(f"{path}: holds {type(content).__name__}, where an object was expected. The page leaves it out.")
        return {}
    if (number(content.get("schema")) or 0) > SCHEMA:
        notices.append(
            f"{path}: written by a newer Sapwood (version {content['schema']}, this one reads up to {SCHEMA}). Update Sapwood to see it."
        )
        return {}
    return content


def _listing(folder: Path) -> list[tuple[str, int]]:
    if not folder.is_dir():
        return []
    return [(str(file.relative_to(folder)), file.stat().st_size) for file in sorted(folder.rglob("*")) if file.is_file()]
