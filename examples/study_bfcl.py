"""The study of docs/study.md, whole: train twice, ask every arm the same unseen items, benchmark before and after, keep the result;
then try the model itself as a judge.

python examples/study_bfcl.py runs/bfcl

A run that was stopped goes on where it was. What is kept under docs/results/study-bfcl is the folder `kept` that this leaves.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sapwood.assets import DEFAULT_MODEL
from sapwood.cli.main import main as sapwood
from sapwood.evaluate.shipping import EXIT_CODES
from sapwood.recipes.judging import JudgeConfig, judge_run
from sapwood.recipes.screen import Screen
from sapwood.run import read_json, read_records

DATA = ("bfcl-calls", "--cluster", "family", "--reference", "allowed", "--held-out", "0.2")
TUNING = ("--lr", "1e-3", "--scorer", "none")
ASKING = ("--scorer", "function-call", "--max-new-tokens", "256", "--shots", "2", "4", "--retrieved", "4")
REQUIREMENTS = Path(__file__).with_name("study_bfcl.yaml")
BENCHMARKS = ("--benchmarks", "mmlu-slice", "--limit", "300")
SHORT = 24
"""Steps of the run that learns for a third of an epoch."""


def commands(
    out: Path,
    *,
    data: Sequence[str] = DATA,
    tuning: Sequence[str] = TUNING,
    asking: Sequence[str] = ASKING,
    requirements: Path = REQUIREMENTS,
    benchmarks: Sequence[str] = BENCHMARKS,
    short: int = SHORT,
) -> Iterator[list[str]]:
    """What is typed, in order; a step whose result is there is left out."""
    for name, more in (("short", ["--max-steps", str(short)]), ("longer", [])):
        if not (out / name / "adapter").is_dir():
            yield ["sft", *data, *tuning, *more, "--out", str(out / name)]
    study = ["--requirements", str(requirements), "--candidate", "longer", *asking, "--out", str(out / "study")]
    yield ["study", str(out / "short"), str(out / "longer"), *study]
    yield ["eval", str(out / "longer"), *benchmarks, "--out", str(out / "benchmarks")]


def main(out: Path, **changed: Any) -> dict[str, Any]:
    """Run it all, and give the summary."""
    for words in commands(out, **changed):
        print("$ sapwood", *words, flush=True)
        code = sapwood(words)
        if code not in (0, *EXIT_CODES.values()):
            sys.exit(code)
    return keep(out)


def judge(out: Path, model: str = DEFAULT_MODEL, pairs: int = 60) -> tuple[str, ...]:
    """Try a model as the judge of the study's two answers, against what the references say of them: a card that says what it is worth."""
    study = out / "study"
    verdict = read_json(study / "verdict.json")
    values: dict[str, dict[str, float]] = {}
    for score in read_records(study / "scores.jsonl"):
        if score["value"] is not None:
            values.setdefault(score["item"], {})[score["arm"]] = score["value"]
    a, b = verdict["best_other"], verdict["tuned"]
    both = {item: found[b] - found[a] for item, found in values.items() if a in found and b in found}
    lines = [{"item": item, "winner": "b" if gain > 0 else "a" if gain < 0 else "tie"} for item, gain in both.items()]
    (study / "right-or-wrong.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result = judge_run(JudgeConfig(run=study, judge_model=model, pairs=pairs, labels=study / "right-or-wrong.jsonl"), screen=Screen())
    print(*result.lines, sep="\n")
    if (study / "judge-card.json").is_file():
        shutil.copyfile(study / "judge-card.json", out / "kept" / "judge-card.json")
    return result.lines


def keep(out: Path) -> dict[str, Any]:
    """The report, the plan and every number of them, small enough to be kept beside the code."""
    kept, ship = out / "kept", read_json(out / "study" / "ship.json")
    kept.mkdir(exist_ok=True)
    for name in ("report.md", "plan.json"):
        shutil.copyfile(out / "study" / name, kept / name)
    parts = ("answer", "line", "candidate", "best_other", "plan", "checks", "difference", "arms", "errors", "harm", "general", "break_even")
    summary = {"command": "python examples/study_bfcl.py", **{part: ship[part] for part in parts}}
    summary["benchmarks"] = read_json(out / "benchmarks" / "benchmarks.json")["rows"]
    (kept / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bfcl")
    main(place)
    judge(place)
