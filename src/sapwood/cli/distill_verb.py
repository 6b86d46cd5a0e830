"""`sapwood distill FILES | CONFIG.yaml | RUN …`"""

from __future__ import annotations

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.recipes.beginning import base_config
from sapwood.recipes.distill import DistillConfig, distill

DESCRIPTION = (
    "Answers of a teacher to your prompts, of which only the right ones become rows to imitate: a server (--hosted-url), a model (--model) "
    "or a run of your own (--start RUN: rejection sampling)."
)


def run(words: list[str]) -> None:
    """Parse, ask, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(base_config(DistillConfig, "distill", names), "distill", flags, DESCRIPTION)
    screen = screen_for(json)
    result = distill(config, screen=screen)
    screen.title("Rows")
    screen.say(result.line, "bold")
    screen.lines([f"Rows         {result.rows}", f"Next         sapwood sft {result.rows}"])
    json.write(result.summary())
