"""`sapwood plan FILES | CONFIG.yaml | RUN …`: what `sapwood sft` with the same words would take. Loads no weights."""

from __future__ import annotations

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.cli.sft_verb import base_config
from sapwood.recipes.plan_lines import lines_of, record_of
from sapwood.recipes.planner import PlanConfig, plan

DESCRIPTION = (
    "Say what a run will take before it begins: memory, time, money, disk, and what would make it fit. Takes what `sapwood sft` takes."
)


def run(words: list[str]) -> None:
    """Parse, plan, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(PlanConfig(tune=base_config(names)), "plan", flags, DESCRIPTION)
    screen = screen_for(json)
    made = plan(config, screen)
    screen.title(f"Plan for {config.tune.model}")
    screen.lines(lines_of(made))
    json.write(record_of(made, config.tune.model))
