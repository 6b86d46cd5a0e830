"""`sapwood pull NAME …`"""

from __future__ import annotations

from rich.table import Table

from sapwood.assets import catalogue, pull
from sapwood.cli.options import screen_for, take_json, take_names
from sapwood.errors import ConfigError


def run(words: list[str]) -> None:
    """Fetch each name, or list what there is."""
    json, words = take_json(words)
    names, flags = take_names(words)
    if flags and flags[0] in ("-h", "--help"):
        print("usage: sapwood pull [NAME …] [--json [FILE.json]]\n\nFetch models and data sets by name; without a name, list them.")
        return
    if flags:
        raise ConfigError(f"unknown option `{flags[0]}`. Usage: sapwood pull NAME …")
    screen = screen_for(json)
    if not names:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("name", "kind", "download", "licence", "what"):
            table.add_column(heading, style="bold" if heading == "name" else "", no_wrap=heading != "what")
        table.columns[0].min_width = max(map(len, catalogue()))  # a name that is cut cannot be typed
        for name, asset in catalogue().items():
            table.add_row(name, asset.kind, f"{asset.size / 1e6:,.0f} MB", asset.licence, asset.summary)
        screen.show(table)
        screen.say("Fetch one with: sapwood pull NAME", "dim")
        json.write({name: {"kind": asset.kind, "bytes": asset.size, "licence": asset.licence} for name, asset in catalogue().items()})
        return
    folders = {}
    for name in names:
        with screen.progress(name) as advance:
            folders[name] = pull(name, report=advance)
        screen.say(f"{name}: {folders[name]}")
    first = catalogue()[names[0]]
    hint = f"sapwood chat {names[0]}" if first.kind == "model" else "sapwood quickstart"
    screen.say(f"Next: {hint}", "dim")
    json.write({name: str(folder) for name, folder in folders.items()})
