"""`sapwood export RUN …`"""

from __future__ import annotations

from pathlib import Path

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.errors import ConfigError
from sapwood.recipes.export_forms import ExportConfig
from sapwood.recipes.exporting import ExportResult, export
from sapwood.recipes.screen import Screen

DESCRIPTION = (
    "Export what a run trained, for the programs of others: merged weights, a PEFT folder, or a GGUF file with a Modelfile. Each is "
    "loaded again and compared with what was trained; beyond its tolerance nothing is written."
)


def run(words: list[str]) -> None:
    """Parse, export, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(ExportConfig(), "export", flags, DESCRIPTION)
    if len(names) != 1:
        raise ConfigError(f"Give one run directory, found {len(names)}. Example: sapwood export runs/my-1 --as gguf --quant q8_0")
    screen = screen_for(json)
    result = export(Path(names[0]), config, screen=screen)
    show(result, screen)
    json.write(result.summary())


def show(result: ExportResult, screen: Screen) -> None:
    """Where it lies, what to know, what to do with it."""
    screen.title("Exported")
    screen.say(str(result.path), "bold green")
    for note in result.notes:
        screen.say(note)
    screen.lines([f"{'Use it' if not number else '':<13}{command}" for number, command in enumerate(result.next)])
