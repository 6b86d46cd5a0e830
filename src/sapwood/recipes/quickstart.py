"""`sapwood quickstart`: the whole chain on one task, in minutes: a small model learns to call functions it has never seen.

It is `sapwood sft bfcl-calls` with settings that suit two processor cores. The task cannot be solved by a lookup: functions
are split by family (`bfcl`), and the two arms that need no model show it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sapwood.recipes import bfcl
from sapwood.recipes.arms import EvalConfig
from sapwood.recipes.chain import TuneResult
from sapwood.recipes.prepare import DataConfig
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import TuneConfig, tune
from sapwood.run import new_run_path
from sapwood.train import OptimConfig, SftConfig

QUICKSTART = TuneConfig(
    data=(bfcl.TASK,),
    rows=DataConfig(held_out=128, cluster="family", reference="allowed"),
    evaluation=EvalConfig(scorer="function-call", max_new_tokens=80, dev=16),
    train=SftConfig(epochs=1.0, batch=8, budget=2048, eval_every=34, optim=OptimConfig(lr=1e-3)),
)
"""The settings of the quick start; every knob of `sapwood sft` can be turned."""


def quickstart(config: TuneConfig = QUICKSTART, *, screen: Screen | None = None) -> TuneResult:
    """Run the quick start. Raises a `SapwoodError` that says what to do."""
    screen = screen or Screen(quiet=True)
    screen.title("Teaching a small model to call functions that it has never seen")
    if config.out is None:
        config = replace(config, out=new_run_path(Path("runs"), "quickstart"))
    return tune(config, screen=screen)
