"""`sapwood plan`: the knobs of a plan, and the way from files to one. The plan itself is in `plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sapwood.errors import ConfigError
from sapwood.recipes.plan import Plan, plan_of
from sapwood.recipes.prepare import prepare, scan_files, set_apart
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import TuneConfig, fetch_model, load_chat


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """The plan of a run. All options of `sapwood sft` are taken, too."""

    price_per_hour: float | None = None
    """What an hour of the machine costs, in any currency."""
    memory: float | None = None
    """GiB of memory that the run may take; what this machine has free, where not given."""
    anew: bool = False
    """Measure the layers again, though they were measured on this machine before."""
    tune: TuneConfig = field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        for name in ("price_per_hour", "memory"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; give a number above 0, or leave it out.")


def plan(config: PlanConfig, screen: Screen | None = None) -> Plan:
    """Prepare the rows, count the model, measure a few of its layers.

    Raises what `sapwood sft` would raise before it loads the model, and `ModelError` where nothing can be counted.
    """
    screen = screen or Screen(quiet=True)
    tuning = config.tune
    if not tuning.data:
        raise ConfigError("No data is named. Give a file of conversations: sapwood plan my.jsonl")
    with screen.progress("reading") as advance:
        rows = scan_files(tuning.data, tuning.rows, advance, weighted=True)
    folder = fetch_model(tuning.model, screen, weights=False)
    chat = load_chat(folder, tuning.template, tools_in_system=tuning.tools_in_system)
    prepared = prepare(rows, chat, tuning.rows, screen)
    if tuning.selects:
        prepared = set_apart(prepared, tuning.rows)
    if not prepared.examples:
        raise ConfigError("All rows are held out, so there is nothing to train on. Lower --held-out.")
    return plan_of(
        folder,
        chat,
        prepared,
        tuning.train,
        tuning.dtype,
        out=tuning.out,
        memory=config.memory,
        price_per_hour=config.price_per_hour,
        anew=config.anew,
    )
