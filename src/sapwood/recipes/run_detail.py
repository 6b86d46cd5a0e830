"""One run in detail: its directory in; settings, curves and what they say, time and disk by part, and what to do next out.

Reads files alone, and no model. Left out on purpose: the items. They are in report.html, which is made to be read.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sapwood.config import to_dict
from sapwood.evaluate.compare_runs import summary_of_ledger
from sapwood.evaluate.curves import CurveFinding, read_curves
from sapwood.evaluate.grpo_signs import seen_in
from sapwood.evaluate.learning_figures import ACCURACY, ENTROPY, LENGTH, MARGIN, REWARD, SOLVED, seconds_by_phase
from sapwood.evaluate.preference_signs import preference_signs
from sapwood.evaluate.report_files import RunFiles, flat, mapping, number, read_run, text_of
from sapwood.recipes.runs import Kind, RunFacts, disk_by_part, facts_of
from sapwood.run import saved_steps


@dataclass(frozen=True)
class RunDetail:
    """What a run's directory says. Empty where it says nothing."""

    facts: RunFacts
    settings: dict[str, str]
    """Those other than the defaults, by dotted key."""
    rows: dict[str, int]
    """Rows in, trained, held out, refused."""
    verdict: str
    """In one sentence."""
    training_losses: tuple[float, ...] = ()
    held_out_losses: tuple[float, ...] = ()
    findings: tuple[CurveFinding, ...] = ()
    figures: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Of rewards and preferences, what counts instead of a loss, by name and step."""
    report: Path | None = None
    """The page to open."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time went, as far as records say it."""
    disk: dict[str, int] = field(default_factory=dict)
    """Bytes by part."""
    checkpoints: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    """Commands, the most likely first."""

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        plain = {name: getattr(self, name) for name in ("settings", "rows", "verdict", "figures", "seconds", "disk")}
        lists = {name: list(getattr(self, name)) for name in ("training_losses", "held_out_losses", "checkpoints", "notes", "next")}
        plain["report"] = str(self.report) if self.report else None
        return {**self.facts.to_dict(), **plain, **lists, "findings": [finding.to_dict() for finding in self.findings]}


def detail_of(path: Path) -> RunDetail:
    """Everything about one run. Raises like `runs.require_run`."""
    facts = facts_of(path)
    disk = disk_by_part(path)
    steps = tuple(saved_steps(path))
    if facts.kind == "sweep" or not (path / "config.yaml").is_file():
        return RunDetail(facts, {}, {}, facts.verdict, disk=disk, checkpoints=steps, next=_next(facts, disk))
    files = read_run(path, only=("metrics.jsonl", "scores.jsonl", "samples.jsonl"))
    ledger = summary_of_ledger(path / "ledger.jsonl")
    counts = ((key.replace("_", " "), number(ledger.get(key))) for key in ("rows_in", "trained", "held_out", "refused"))
    moved = _moved(files) if facts.state == "stopped" else ""
    return RunDetail(
        facts=facts,
        settings=_turned(files, facts.kind),
        rows={key: int(count) for key, count in counts if count is not None},
        verdict=text_of(files.decision.get("text") or files.verdict.get("line")),
        training_losses=_losses(files, "train") if files.learns_by != "grpo" else (),  # that one is near 0 whatever is learned
        held_out_losses=_losses(files, "eval"),
        findings=_findings(files),
        figures=_figures(files),
        report=files.path / "report.html" if (files.path / "report.html").is_file() else None,
        seconds=_seconds(files),
        disk=disk,
        checkpoints=steps,
        notes=(*files.notices, *([moved] if moved else [])),
        next=_next(facts, disk),
    )


def _findings(files: RunFiles) -> tuple[CurveFinding, ...]:
    """What the curves of a fine-tuning show. Those of rewards and preferences are read by other eyes: their loss says little."""
    if files.learns_by is None:
        return tuple(read_curves(files.metrics, samples=files.samples, verdict=files.verdict))
    train = [record for record in files.metrics if record.get("kind", "train") == "train"]
    seen = seen_in(train) if files.learns_by == "grpo" else seen_in(files.metrics, preference_signs)
    return tuple(CurveFinding(one.sign.kind, one.still, one.sign.sentence, one.sign.remedy, one.first) for one in seen)


def _figures(files: RunFiles) -> dict[str, tuple[float, ...]]:
    """What counts instead of a loss, step by step."""
    shown = {"grpo": (REWARD, SOLVED, LENGTH, ENTROPY), "dpo": (ACCURACY, MARGIN), None: ()}[files.learns_by]
    train = [record for record in files.metrics if record.get("kind", "train") == "train"]
    read = {figure.name: tuple(value for record in train if math.isfinite(value := figure.of(record))) for figure in shown}
    return {name: values for name, values in read.items() if values}


def _losses(files: RunFiles, kind: str) -> tuple[float, ...]:
    found = (number(record.get("loss")) for record in files.metrics if record.get("kind", "train") == kind)
    return tuple(loss for loss in found if loss is not None)


def _turned(files: RunFiles, kind: Kind) -> dict[str, str]:
    """Settings other than the defaults of the verb. Its knobs are loaded here, for the defaults lie in the code."""
    from sapwood.recipes.assess import AssessConfig
    from sapwood.recipes.decide import DecideConfig
    from sapwood.recipes.prefer import PreferConfig
    from sapwood.recipes.reinforce import ReinforceConfig
    from sapwood.recipes.tune import TuneConfig

    defaults = {"eval": AssessConfig, "decide": DecideConfig, "dpo": PreferConfig, "grpo": ReinforceConfig}.get(kind, TuneConfig)()
    before = dict(flat(to_dict(defaults)))
    return {key: value for key, value in flat(files.config) if before.get(key) != value and key != "out"}


def _seconds(files: RunFiles) -> dict[str, float]:
    """Training steps, by phase where they have phases, and the answers of each arm."""
    found: dict[str, float] = {}
    phases = seconds_by_phase(files.metrics)
    for record in files.metrics:
        if record.get("kind", "train") == "train":
            found["training steps"] = found.get("training steps", 0.0) + (number(record.get("seconds")) or 0.0)
    if phases:
        found = {f"training, {words}": seconds for words, seconds in phases.items()}
    for record in files.scores:
        name = f"answers: {text_of(record.get('arm'))}"
        found[name] = found.get(name, 0.0) + (number(record.get("seconds")) or 0.0)
    return {name: seconds for name, seconds in found.items() if seconds >= 0.05}


def _moved(files: RunFiles) -> str:
    """Whether other versions would go on with it than began it."""
    was = mapping(files.environment.get("versions"))
    now: dict[str, str] = {}
    for name in ("sapwood", "torch", "transformers", "peft"):
        try:
            now[name] = version(name)
        except PackageNotFoundError:
            continue
    moved = [f"{name} ({text_of(was[name])} then, {now[name]} now)" for name in now if name in was and text_of(was[name]) != now[name]]
    return f"Since this run was begun something has changed: {', '.join(moved)}. It goes on, but not to the same bits." if moved else ""


def _next(facts: RunFacts, disk: dict[str, int]) -> tuple[str, ...]:
    path = shlex.quote(str(facts.path))
    if facts.state == "running":
        return ()
    if facts.kind == "sweep":
        return (f"sapwood runs {path}",) if facts.state == "finished" else (f"sapwood sweep {path}",)
    if facts.state == "stopped":
        verb = "" if facts.kind == "trl" else facts.kind
        return (f"sapwood {verb} {path}",) if verb and (facts.path / "config.yaml").is_file() else ()
    if facts.kind not in ("sft", "dpo", "grpo", "trl"):
        return ()
    found = [f"sapwood chat {path}", f"sapwood export {path} --as gguf"]
    return tuple([*found, f"sapwood runs prune {path} --keep 0"] if disk.get("checkpoints") else found)
