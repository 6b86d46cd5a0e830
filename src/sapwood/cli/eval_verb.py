"""`sapwood eval FILES | RUN …`"""

from __future__ import annotations

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.config import to_dict
from sapwood.recipes import assess
from sapwood.recipes.assess import config_for

DESCRIPTION = (
    "Measure a model, or a run's adapter beside its base model, on conversations. Give files (JSON Lines, CSV, Parquet, …) or a "
    "run directory."
)


def run(words: list[str]) -> None:
    """Parse, evaluate, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(config_for(names), "eval", flags, DESCRIPTION)
    screen = screen_for(json)
    result = assess(config, screen=screen)
    screen.title("Result")
    screen.say(result.line, "bold")
    screen.lines([f"Report       {result.report}"])
    if config.adapter is None:
        screen.say("Next         sapwood sft FILE, then sapwood eval RUN", "dim")
    json.write(
        {
            "line": result.line,
            "report": str(result.report),
            "seconds": round(result.seconds, 1),
            "arms": {name: arm.to_dict() for name, arm in result.arms.items()},
            "verdict": result.verdict.to_dict() if result.verdict else None,
            "config": to_dict(config),
        }
    )
