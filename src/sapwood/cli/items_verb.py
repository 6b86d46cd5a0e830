"""`sapwood items build LOGS …`"""

from __future__ import annotations

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.recipes.item_set import ItemsConfig, build_items

DESCRIPTION = (
    "Build a set of items from logs of real queries: personal data masked, near duplicates clustered, what stands in training data left "
    "out, a stratified sample, edge cases, a dev and a test side."
)


def run(words: list[str]) -> None:
    """Parse, build, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    if not {"-h", "--help"} & set(flags) and names[:1] != ["build"]:
        hint = did_you_mean(names[0], ["build"]) if names else ""
        raise ConfigError(f"Say what to do with items.{hint} Actions: build. For example: sapwood items build mails.jsonl")
    config = parse(ItemsConfig(logs=tuple(names[1:])), "items build", flags, DESCRIPTION)
    screen = screen_for(json)
    with screen.progress("building"):
        found = build_items(config)
    for note in found.notes:
        screen.say(note)
    screen.say(f"Written: {found.path}, version {found.card['version']}.", "bold")
    screen.say(f"Next         look at {found.path}/dev.jsonl, then: sapwood eval init {found.path}/dev.jsonl", "dim")
    json.write({"path": str(found.path), **found.card, "notes": list(found.notes)})
