"""`sapwood dpo FILES | CONFIG.yaml | RUN …`"""

from __future__ import annotations

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.recipes.beginning import base_config
from sapwood.recipes.prefer import PreferConfig, prefer

DESCRIPTION = (
    "Learn from what people preferred: pairs of a chosen and a rejected answer, or single answers with a vote (--votes COLUMN). Give "
    "files, a config.yaml to run again, or a run directory to go on."
)


def run(words: list[str]) -> None:
    """Parse, tune, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(base_config(PreferConfig, "dpo", names), "dpo", flags, DESCRIPTION)
    screen = screen_for(json)
    result = prefer(config, screen=screen)
    screen.title("Verdict")
    screen.say(result.line, "bold")
    name = "Adapter" if result.adapter.name == "adapter" else "Model"
    screen.lines([f"Report       {result.report}", f"{name:<13}{result.adapter}", f"Talk to it   sapwood chat {result.adapter}"])
    json.write(result.summary())
