"""`sapwood eval FILES | RUN …`"""

from __future__ import annotations

from pathlib import Path

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.config import to_dict
from sapwood.recipes import AssessConfig, assess
from sapwood.recipes.assess import of_run

DESCRIPTION = (
    "Measure a model, or a run's adapter beside its base model, on conversations. Give files (JSON Lines, CSV, Parquet, …) or a "
    "run directory."
)


def run(words: list[str]) -> None:
    """Parse, evaluate, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    is_run = len(names) == 1 and (Path(names[0]) / "config.yaml").is_file()
    base = of_run(Path(names[0])) if is_run else AssessConfig(data=tuple(names))
    config = parse(base, "eval", flags, DESCRIPTION)
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
