"""`sapwood grpo FILES | CONFIG.yaml | RUN …`"""

from __future__ import annotations

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.recipes.beginning import base_config
from sapwood.recipes.reinforce import ReinforceConfig, reinforce

DESCRIPTION = (
    "Learn from rewards (GRPO): groups of answers to each prompt are sampled by the model itself, rewarded, and compared. Give files of "
    "prompts with what is right, or --task NAME of reasoning-gym; a config.yaml to run again, or a run directory to go on."
)


def run(words: list[str]) -> None:
    """Parse, train, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(base_config(ReinforceConfig, "grpo", names), "grpo", flags, DESCRIPTION)
    screen = screen_for(json)
    result = reinforce(config, screen=screen)
    screen.title("Verdict")
    screen.say(result.line, "bold")
    name = "Adapter" if result.adapter.name == "adapter" else "Model"
    screen.lines([f"Report       {result.report}", f"{name:<13}{result.adapter}", f"Talk to it   sapwood chat {result.adapter}"])
    json.write(result.summary())
