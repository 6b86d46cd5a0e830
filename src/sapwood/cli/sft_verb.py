"""`sapwood sft FILES | CONFIG.yaml | RUN …`"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.config import load_yaml
from sapwood.errors import ConfigError
from sapwood.evaluate.charts import signed
from sapwood.recipes import Screen, TuneConfig, TuneResult, tune
from sapwood.recipes.tune import config_of
from sapwood.run import require_known

DESCRIPTION = (
    "Fine-tune on conversations and prove that it helped. Give files (JSON Lines, CSV, Parquet, …), a config.yaml to run again, "
    "or a run directory to go on."
)


def run(words: list[str]) -> None:
    """Parse, tune, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(base_config(names), "sft", flags, DESCRIPTION)
    screen = screen_for(json)
    result = tune(config, screen=screen)
    show(result, screen)
    json.write(result.summary())


def base_config(names: list[str]) -> TuneConfig:
    """The config that flags are laid over: files of data, a saved config (in a new run directory), or a run to go on with."""
    if len(names) == 1:
        path = Path(names[0])
        if path.suffix in (".yaml", ".yml"):
            if not path.exists():
                raise ConfigError(f"{path}: no such file. Name a config.yaml that a run has left, or give your data: sapwood sft my.jsonl")
            require_known(path.parent)  # a run's own config may hold options that only a later version knows
            return replace(load_yaml(TuneConfig, path), out=None)
        if (path / "config.yaml").is_file():
            return replace(config_of(path), out=path)
    for name in names:
        if (Path(name) / "config.yaml").is_file():
            raise ConfigError(f"{name} is a run directory, and goes on with its own data: name it alone, or files of rows without it.")
    return TuneConfig(data=tuple(names))


def show(result: TuneResult, screen: Screen) -> None:
    """The verdict and what to do next."""
    screen.title("Verdict")
    decision = result.verdict.decision if result.verdict else "not shown"
    style = {"better": "bold green", "worse": "bold red"}.get(decision, "bold yellow")
    screen.say(result.line, style)
    for name, change in result.bits.items():
        screen.say(
            f"{name}: {change.before.mean:.3f} → {change.after.mean:.3f} bits a token "
            f"({signed(change.mean, 3)} [{signed(change.interval.low, 3)}, {signed(change.interval.high, 3)}])"
        )
    if result.verdict:
        screen.say(result.verdict.caveats[0], "dim")
    screen.say("")
    screen.lines(
        [
            f"Report       {result.report}",
            f"{'Adapter' if result.adapter.name == 'adapter' else 'Model':<13}{result.adapter}",
            f"Talk to it   sapwood chat {result.path}",
        ]
    )
    if sys.stderr.isatty():
        screen.lines([f"Run it again sapwood sft {result.path / 'config.yaml'} --lr 5e-4"])
