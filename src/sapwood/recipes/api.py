"""What Python users call: the verbs as functions, with knobs by their plain names.

import sapwood
result = sapwood.sft("my.jsonl", lr=5e-4)
result                      # shows itself in a notebook
sapwood.evaluate(result.path)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any, TypeVar

from sapwood.config import with_knobs
from sapwood.errors import ConfigError
from sapwood.evaluate.rewards import Reward
from sapwood.recipes.assess import AssessResult, assess
from sapwood.recipes.assess import config_for as evaluation_for
from sapwood.recipes.chain import TuneResult
from sapwood.recipes.decide import DecideResult
from sapwood.recipes.decide import config_for as decision_for
from sapwood.recipes.decide import decide as run_decide
from sapwood.recipes.plan import Plan
from sapwood.recipes.planner import PlanConfig
from sapwood.recipes.planner import plan as run_plan
from sapwood.recipes.playing import PlayConfig
from sapwood.recipes.prefer import PreferConfig, PreferResult, prefer
from sapwood.recipes.reinforce import ReinforceConfig, ReinforceResult, reinforce
from sapwood.recipes.screen import Screen
from sapwood.recipes.sweep import SweepResult, as_over
from sapwood.recipes.sweep import config_for as sweep_for
from sapwood.recipes.sweep import sweep as run_sweep
from sapwood.recipes.tune import TuneConfig, tune
from sapwood.records import Sampler

C = TypeVar("C")
Files = str | PathLike[str] | Sequence[str | PathLike[str]]


def sft(data: Files, *, quiet: bool = False, **knobs: Any) -> TuneResult:
    """Fine-tune on files of rows and prove that it helped: `sapwood sft` as a function.

    Knobs are those of `sapwood sft --help` by their plain names (`lr`, `epochs`, `held_out`, `model`, …).
    Raises `ConfigError` for an unknown one, and every other `SapwoodError` with what to do.
    """
    return tune(with_knobs(TuneConfig(data=_names(data)), knobs), screen=Screen(quiet=quiet))


def dpo(data: Files, *, quiet: bool = False, **knobs: Any) -> PreferResult:
    """Learn from what people preferred: `sapwood dpo` as a function. Raises like `sft`."""
    return prefer(with_knobs(PreferConfig(data=_names(data)), knobs), screen=Screen(quiet=quiet))


def grpo(
    data: Files = (),
    *,
    rewards: Sequence[Any] | Any = (),
    tools: Sequence[Any] = (),
    environment: Any = None,
    quiet: bool = False,
    **knobs: Any,
) -> ReinforceResult:
    """Learn from rewards: `sapwood grpo` as a function. Raises like `sft`.

    `rewards` are names, as `--rewards` takes them, `Reward`s, or functions as TRL calls them (`reward(completions, **columns)`); `tools`
    functions that the model may call, and `environment` a class with `reset(item)` and `step(answer)`, or FILE.py:NAME of each.
    """
    given = [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)
    named = tuple(one for one in given if isinstance(one, str))
    own = [
        one if isinstance(one, Reward) else Reward(getattr(one, "__name__", type(one).__name__), function=one)
        for one in given
        if not isinstance(one, str)
    ]
    play = PlayConfig(
        tools=tuple(one for one in tools if isinstance(one, str)), environment=environment if isinstance(environment, str) else None
    )
    return reinforce(
        with_knobs(ReinforceConfig(data=_names(data), rewards=named, play=play), knobs),
        screen=Screen(quiet=quiet),
        rewards=own,
        tools=[one for one in tools if not isinstance(one, str)],
        environment=None if isinstance(environment, str) else environment,
    )


def decide(data: Files, *, quiet: bool = False, hosted: Sampler | None = None, **knobs: Any) -> DecideResult:
    """Should you fine-tune on files of rows? `sapwood decide` as a function, or its directory named again.

    `hosted` is asked every item as a hosted model's arm. Raises like `sft`.
    """
    return run_decide(with_knobs(decision_for(_names(data)), knobs), screen=Screen(quiet=quiet), hosted=hosted)


def plan(data: Files, *, quiet: bool = False, **knobs: Any) -> Plan:
    """What `sft` with the same files and knobs would take: `sapwood plan` as a function. No weights are loaded or fetched.

    Raises like `sft`.
    """
    return run_plan(with_knobs(PlanConfig(tune=TuneConfig(data=_names(data))), knobs), Screen(quiet=quiet))


def sweep(data: Files, over: Mapping[str, Sequence[Any]], *, quiet: bool = False, **knobs: Any) -> SweepResult:
    """Train a grid, such as `over={"lr": [1e-4, 1e-3]}`, on the same rows: `sapwood sweep` as a function. Raises like `sft`.

    `data` may be the directory of a sweep, to go on with it.
    """
    config = sweep_for(_names(data))
    return run_sweep(with_knobs(config, {**knobs, "over": as_over(over) or config.over}), screen=Screen(quiet=quiet))


def evaluate(data: Files, *, quiet: bool = False, **knobs: Any) -> AssessResult:
    """Measure a run (give its directory) or a model on files of rows: `sapwood eval` as a function."""
    return assess(with_knobs(evaluation_for(_names(data)), knobs), screen=Screen(quiet=quiet))


def _names(data: Files) -> tuple[str, ...]:
    entries = [data] if isinstance(data, str | PathLike) else list(data)
    for entry in entries:
        if not isinstance(entry, str | PathLike):
            raise ConfigError(f"data holds a {type(entry).__name__}; give the path of a file, or a list of such paths.")
    return tuple(fspath(entry) for entry in entries)


__all__ = ["decide", "dpo", "evaluate", "grpo", "plan", "sft", "sweep", "with_knobs"]
