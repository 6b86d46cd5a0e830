"""Runs side by side: their files in; settings and data that differ, rates, and paired differences out.

A difference is given only over items that both runs were asked (the same id: question, reference, tools), judged by the same scorer,
and with its interval; how many are shared is said. Rates of different questions are never subtracted. `compare_page` shows it.
Left out on purpose: naming a best run of several. That is a choice among noise, and `sapwood sweep` makes it honestly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sapwood.errors import ConfigError, DataError, storage
from sapwood.evaluate.experiment import ArmScore, over_samples, scores_from
from sapwood.evaluate.free import FREE_ARMS
from sapwood.evaluate.report_files import Record, RunFiles, flat, mapping, number, read_run, text_of
from sapwood.evaluate.verdict import ArmResult, Decision, arm_result, decide
from sapwood.stats import Difference

TUNED = "tuned"
ABSENT = "–"
TAIL = 1 << 16
"""Bytes at the end of a ledger that hold its summary."""


@dataclass(frozen=True)
class Row:
    """One thing in which runs differ, and what each of them has."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Pairing:
    """One arm of run `b` against the same arm of run `a`, over the items that both were asked."""

    a: int
    b: int
    arm: str
    shared: int
    alone: tuple[int, int]
    """Items that only `a`, only `b` was asked."""
    difference: Difference | None
    """Of shares of 1; None where nothing can be compared."""
    decision: Decision
    line: str

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """For machines; points are of 100."""
        d = self.difference
        found: dict[str, Any] = {"run": names[self.b], "against": names[self.a], "arm": self.arm, "shared_items": self.shared}
        found |= {"items_of_one_alone": list(self.alone), "decision": self.decision, "line": self.line}
        if d is not None:
            found |= {"points": 100 * d.mean, "interval": [100 * d.interval.low, 100 * d.interval.high], "p_value": d.p_value}
        return found


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; every tuple of values is in the order of `names`."""

    names: tuple[str, ...]
    files: tuple[RunFiles, ...]
    settings: tuple[Row, ...]
    data: tuple[Row, ...]
    made_with: tuple[Row, ...]
    losses: tuple[tuple[float | None, ...], ...]
    """Held-out losses of each run, in order of steps."""
    arms: dict[str, tuple[ArmResult | None, ...]]
    pairings: tuple[Pairing, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "runs": list(self.names),
            "settings_that_differ": {row.name: list(row.values) for row in self.settings},
            "data_that_differs": {row.name: list(row.values) for row in self.data},
            "versions_that_differ": {row.name: list(row.values) for row in self.made_with},
            "held_out_losses": [list(losses) for losses in self.losses],
            "arms": {name: [arm.to_dict() if arm is not None else None for arm in arms] for name, arms in self.arms.items()},
            "pairs": [pairing.to_dict(self.names) for pairing in self.pairings],
            "notes": list(self.notes),
        }


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Read runs and lay them side by side, each paired with the first. Raises `ConfigError` for fewer than two, `DataError` for no run."""
    if len(paths) < 2:
        raise ConfigError("A comparison needs at least two runs: sapwood runs compare runs/my-1 runs/my-2")
    files = tuple(read_run(path, only=("metrics.jsonl", "scores.jsonl")) for path in paths)
    names = _names(paths)
    scores = [_scores(one) for one in files]
    arms = {name: tuple(_result(of_run.get(name)) for of_run in scores) for name in dict.fromkeys(arm for one in scores for arm in one)}
    pairings = [pairing for b in range(1, len(paths)) for pairing in _pairings(files, names, scores, 0, b)]
    notes = [notice for one in files for notice in one.notices]
    return Comparison(
        names=names,
        files=files,
        settings=differing([_settings(one.config) for one in files]),
        data=differing([_data(one) for one in files]),
        made_with=differing([dict(flat(mapping(one.environment.get("versions")))) for one in files]),
        losses=tuple(tuple(number(record.get("loss")) for record in one.metrics if record.get("kind") == "eval") for one in files),
        arms=arms,
        pairings=tuple(pairings),
        notes=tuple(notes),
    )


def differing(sides: Sequence[dict[str, str]]) -> tuple[Row, ...]:
    """The keys whose values are not the same on all sides, in order of first sight; `–` stands where a side lacks one."""
    keys = dict.fromkeys(key for side in sides for key in side)
    rows = (Row(key, tuple(side.get(key, ABSENT) for side in sides)) for key in keys)
    return tuple(row for row in rows if len(set(row.values)) > 1)


def paired(
    a: Sequence[ArmScore], b: Sequence[ArmScore], names: tuple[str, str], *, level: float = 0.95
) -> tuple[int, Difference | None, Decision, str]:
    """Two arms over the items that both hold: (items shared, b − a, decision, sentence)."""
    of_a, of_b = ({score.item: score for score in side} for side in (a, b))
    shared = [item for item in of_a if item in of_b]
    if not shared:
        return 0, None, "not shown", f"{names[1]} against {names[0]}: no item in common, so their rates are not compared."
    one = [_as(of_a[item], "a") for item in shared]
    other = [_as(of_b[item], "b") for item in shared]
    try:
        verdict = decide([*one, *other], tuned="b", level=level)
    except DataError:  # shared, and not one of them scored on both sides
        return len(shared), None, "not shown", f"{names[1]} against {names[0]}: of {len(shared)} shared items none was scored in both."
    d = verdict.difference
    words = {"better": "better", "worse": "worse", "not shown": "not told apart"}[verdict.decision]
    because = f" ({verdict.reason})" if verdict.reason else ""
    low, high = 100 * d.interval.low, 100 * d.interval.high
    line = f"{names[1]} against {names[0]}: {100 * d.mean:+.1f} points [{low:+.1f}, {high:+.1f}] on {d.n} shared items: {words}{because}."
    return len(shared), d, verdict.decision, line.replace("-0.0", "0.0").replace("+0.0", "0.0")


def summary_of_ledger(path: Path) -> Record:
    """The ledger's last record, which counts its rows, without reading the rows; empty where there is none."""
    if not path.is_file():
        return {}
    with storage(path, "read"), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read().strip().split(b"\n")
    try:
        last = mapping(orjson.loads(lines[-1]))
    except orjson.JSONDecodeError:
        return {}
    return last if last.get("kind") == "summary" else {}


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The folders' names where these tell them apart, else their paths."""
    short = [path.resolve().name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError("A run is named twice. Name each run once: sapwood runs compare runs/my-1 runs/my-2")
    return tuple(names)


def _settings(config: Record) -> dict[str, str]:
    return {key: value for key, value in flat(config) if key != "out"}


def _data(files: RunFiles) -> dict[str, str]:
    """Which rows, by their hash, and how many; other hashes of the run's identity as well."""
    words = {"rows": "rows (hash)", "template": "template and tokenizer (hash)", "model": "base weights (hash)"}
    found = {words[key]: text_of(files.identity[key])[:8] for key in words if files.identity.get(key)}
    summary = summary_of_ledger(files.path / "ledger.jsonl")
    counts = {key: summary.get(key) for key in ("rows_in", "trained", "held_out", "refused", "trained_tokens")}
    return found | {key.replace("_", " "): f"{int(count):,}" for key, value in counts.items() if (count := number(value)) is not None}


def _scores(files: RunFiles) -> dict[str, list[ArmScore]]:
    found: dict[str, list[ArmScore]] = {}
    try:
        for score in over_samples(scores_from(files.scores)):
            found.setdefault(score.arm, []).append(score)
    except DataError as error:
        files.notices.append(f"{files.path}: {error}")
    return found


def _result(scores: list[ArmScore] | None) -> ArmResult | None:
    return arm_result(scores) if scores else None


def _pairings(
    files: Sequence[RunFiles], names: Sequence[str], scores: Sequence[dict[str, list[ArmScore]]], a: int, b: int
) -> list[Pairing]:
    """Every arm that both runs asked a model for; of arms other than the tuned one, those alone that answered otherwise."""
    common = [arm for arm in scores[a] if arm in scores[b] and arm not in FREE_ARMS]
    scorers = [text_of(files[place].verdict.get("scorer")) for place in (a, b)]
    found = []
    for arm in sorted(common, key=lambda arm: arm != TUNED):
        if all(scorers) and scorers[0] != scorers[1]:
            line = f"{names[b]} against {names[a]}: judged by {scorers[1]} and by {scorers[0]}, so their rates are not compared."
            return [Pairing(a, b, arm, 0, (len(scores[a][arm]), len(scores[b][arm])), None, "not shown", line)]
        shared, difference, decision, line = paired(scores[a][arm], scores[b][arm], (names[a], names[b]))
        if arm != TUNED and difference is not None and difference.wins == difference.losses == 0:
            continue
        alone = (len(scores[a][arm]) - shared, len(scores[b][arm]) - shared)
        if shared and any(alone):
            line = f"{line} {alone[0]} items of {names[a]} and {alone[1]} of {names[b]} are not shared, and left out."
        found.append(Pairing(a, b, arm, shared, alone, difference, decision, line))
    return found


def _as(score: ArmScore, arm: str) -> ArmScore:
    return ArmScore(**{**score.record(), "arm": arm})
