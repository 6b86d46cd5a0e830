"""`sapwood reason RECIPE.yaml`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.errors import ConfigError
from sapwood.recipes.reason import FILE, PAGE, read_recipe, reason

DESCRIPTION = "Run the stages of a recipe, or go on with them: sft, grpo, distill and dpo, each measured on the same unseen prompts."


@dataclass(frozen=True, kw_only=True)
class ReasonFlags:
    """What may be said beside the recipe."""

    out: Path | None = None
    """Folder of the stages, instead of the recipe's own."""
    model: str | None = None
    """The base model, instead of the recipe's own."""


def run(words: list[str]) -> None:
    """Parse, run what is not finished, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    flags_given = parse(ReasonFlags(), "reason", flags, DESCRIPTION)
    if len(names) != 1:
        raise ConfigError(f"Give one recipe in YAML, found {len(names)}; docs/rewards.md has one.")
    config = read_recipe(Path(names[0]))
    config = replace(config, out=flags_given.out or config.out, model=flags_given.model or config.model)
    screen = screen_for(json)
    done = reason(config, screen=screen)
    screen.title("Stages")
    for name, one in done.items():
        found = one["measured"]
        if found is not None:
            several = "   ".join(f"{key} {value['mean']:.1%}" for key, value in found.items() if isinstance(value, dict))
            screen.lines([f"{name:<12}{several}"])
    screen.lines([f"Report       {config.out / PAGE}", f"Everything   {config.out / FILE}"])
    json.write(done)
