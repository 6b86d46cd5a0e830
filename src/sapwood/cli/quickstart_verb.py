"""`sapwood quickstart`"""

from __future__ import annotations

from sapwood.cli.options import parse, screen_for, take_json
from sapwood.cli.sft_verb import show
from sapwood.recipes import QUICKSTART, quickstart

DESCRIPTION = "The whole chain on two processor cores in minutes: a small model learns to call functions that it has never seen."


def run(words: list[str]) -> None:
    """Parse, run the quick start, show, and say how to do the same with one's own file."""
    json, words = take_json(words, any_name=True)
    config = parse(QUICKSTART, "quickstart", words, DESCRIPTION)
    screen = screen_for(json)
    result = quickstart(config, screen=screen)
    show(result, screen)
    screen.say("The same for your own conversations:")
    screen.say("    sapwood sft my.jsonl", "bold")
    screen.say(f"    sapwood chat {result.path}", "bold")
    json.write(result.summary())
