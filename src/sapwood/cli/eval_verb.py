"""`sapwood eval FILES | RUN …`, `eval init [FILES]`, `eval [RUN] --benchmarks …`, `eval RUN --rescore NAME`, `… --judge-model NAME`"""

from __future__ import annotations

import sys
from pathlib import Path

from sapwood.cli.options import Json, parse, screen_for, take_json, take_names
from sapwood.config import to_dict
from sapwood.recipes import assess
from sapwood.recipes.assess import config_for
from sapwood.recipes.benchmarks import benchmark
from sapwood.recipes.benchmarks import config_for as config_of_benchmarks
from sapwood.recipes.judging import config_for as config_of_judging
from sapwood.recipes.judging import judge_run
from sapwood.recipes.needs import InitConfig, propose
from sapwood.recipes.rescore import config_for as config_of_rescoring
from sapwood.recipes.rescore import rescore

DESCRIPTION = (
    "Measure a model, or a run's adapter beside its base model, on conversations. Give files (JSON Lines, CSV, Parquet, …) or a "
    "run directory. `sapwood eval init FILES` writes requirements.yaml. Standard benchmarks: "
    "`sapwood eval [RUN] --benchmarks mmlu-slice` (with --help, what that takes). Saved answers by other scorers: "
    "`sapwood eval RUN --rescore rouge`; by a model: `sapwood eval RUN --judge-url URL --judge-model NAME`."
)
BENCHMARKS = "Standard benchmarks of a model, of a run's adapter beside its base model, and of others on the same questions."
JUDGE = "The saved answers of two arms of a run, compared by a model on a server; people's labels calibrate and correct it."
RESCORE = "The saved answers of a run, judged by other scorers; no model is asked."
INIT = (
    "Write requirements.yaml, which says what the use case needs: read off files of rows, asked on a terminal, or by flags. It drives "
    "`sapwood study` and the review pages."
)


def run(words: list[str]) -> None:
    """Parse, evaluate, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    if names[:1] == ["init"] and not Path("init").exists():
        _init(parse(InitConfig(data=tuple(names[1:])), "eval init", flags, INIT), json)
        return
    given = {flag.split("=")[0] for flag in flags}
    if "--benchmarks" in given:
        _benchmarks(names, flags, json)
        return
    if "--rescore" in given:
        _rescore(names, flags, json)
        return
    if given & {"--judge-url", "--judge-model"}:
        _judge(names, flags, json)
        return
    config = parse(config_for(names), "eval", flags, DESCRIPTION)
    screen = screen_for(json)
    result = assess(config, screen=screen)
    screen.title("Result")
    screen.say(result.line, "bold")
    screen.lines([f"Report       {result.report}"])
    screen.say(f"Next         sapwood review {result.path}: let people judge the answers, blind", "dim")
    if config.adapter is None:
        screen.say("Next         sapwood sft FILE, then sapwood eval RUN", "dim")
    json.write(
        {
            "line": result.line,
            "report": str(result.report),
            "seconds": round(result.seconds, 1),
            "arms": {name: arm.to_dict() for name, arm in result.arms.items()},
            "verdict": result.verdict.to_dict() if result.verdict else None,
            "costs": result.costs or None,
            "config": to_dict(config),
        }
    )


def _init(config: InitConfig, json: Json) -> None:
    """Write requirements.yaml, asking where somebody can answer."""
    screen = screen_for(json)

    def ask(question: str, otherwise: str) -> str:
        shown = f" [{otherwise}]" if otherwise else ""
        return input(f"  {question}{shown} ").strip() or otherwise

    found = propose(config, ask if sys.stdin.isatty() and json.target is None else None)
    for note in found.notes:
        screen.say(note)
    screen.say(f"Written: {found.path}. Read it; name the errors that hurt, and what they cost.", "bold")
    screen.say(f"Next         sapwood study runs/my-1 --requirements {found.path}", "dim")
    json.write(
        {"path": str(found.path), "requirements": to_dict(found.requirements), "hash": found.requirements.hash, "notes": found.notes}
    )


def _benchmarks(names: list[str], flags: list[str], json: Json) -> None:
    config = parse(config_of_benchmarks(names), "eval", flags, BENCHMARKS)
    screen = screen_for(json)
    result = benchmark(config, screen=screen)
    screen.title("Result")
    screen.lines([*map(str, result.rows), f"Report       {result.report}", f"Records      {result.path / 'benchmarks.jsonl'}"])
    if config.adapter is None:
        screen.say("Next         sapwood sft FILE, then sapwood eval RUN --benchmarks … for what got better and what got worse", "dim")
    json.write(
        {
            "path": str(result.path),
            "seconds": round(result.seconds, 1),
            "rows": [row.to_dict() for row in result.rows],
            "config": to_dict(config),
        }
    )


def _rescore(names: list[str], flags: list[str], json: Json) -> None:
    config = parse(config_of_rescoring(names), "eval", flags, RESCORE)
    screen = screen_for(json)
    result = rescore(config, screen=screen)
    screen.title("Result")
    screen.lines([*map(str, result.rows), f"Records      {result.path / 'rescored.jsonl'}"])
    json.write({"path": str(result.path), "rows": [row.to_dict() for row in result.rows], "config": to_dict(config)})


def _judge(names: list[str], flags: list[str], json: Json) -> None:
    config = parse(config_of_judging(names), "eval", flags, JUDGE)
    screen = screen_for(json)
    result = judge_run(config, screen=screen)
    screen.title("Result")
    screen.lines([*result.lines, f"Records      {result.path / 'judged.jsonl'}"])
    if config.labels is None:
        screen.say(
            "Next         label a random part of the pairs, then again with --labels FILE: that says how far this may be believed", "dim"
        )
    json.write({"path": str(result.path), "lines": result.lines, "found": result.found, "config": to_dict(config)})
