"""`sapwood runs [FOLDER] | show RUN | compare A B … | prune [RUN …] | delete RUN …`"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sapwood.cli.options import Json, parse, screen_for, take_json, take_names
from sapwood.cli.runs_shown import show_comparison, show_detail, show_list, size
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.evaluate.compare_page import write_comparison
from sapwood.evaluate.compare_runs import compare_runs
from sapwood.evaluate.history import write_history
from sapwood.recipes.run_detail import detail_of
from sapwood.recipes.runs import SWEEP, history_of, runs
from sapwood.recipes.screen import Screen
from sapwood.recipes.tidy import Removal, old_checkpoints, remove, whole_runs

HOME = Path("runs")
DESCRIPTIONS = {
    "list": "List the runs in a folder, newest first: `sapwood runs`, or `sapwood runs FOLDER`.",
    "show": "Show one run: settings, verdict, curves and what they say, time, disk, what to do next.",
    "compare": "Lay runs side by side: what differs in settings and data, curves, and paired differences on the items that they share.",
    "prune": "Remove old checkpoints of runs; of all runs in the folder `runs` where none is named. Says what it frees, then asks.",
    "delete": "Delete whole runs. Says what goes, then asks.",
}


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """The list of runs."""

    out: Path | None = None
    """Write their history as an HTML page: the score of each, and its difference to the one before on the same questions."""


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """One run."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Runs side by side."""

    out: Path | None = None
    """Write the comparison as an HTML page that loads nothing from anywhere."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """What is removed."""

    keep: int = 1
    """Checkpoints of each run to keep, the newest ones."""
    lose_resume: bool = False
    """Remove also what a stopped run needs to go on."""
    yes: bool = False
    """Remove without asking."""


@dataclass(frozen=True, kw_only=True)
class DeleteConfig:
    """What is deleted."""

    yes: bool = False
    """Delete without asking."""


def run(words: list[str]) -> None:
    """Find the action, and do it."""
    json, words = take_json(words)
    names, flags = take_names(words)
    actions: dict[str, Callable[[list[str], list[str], Json], None]] = {
        "list": _list,
        "show": _show,
        "compare": _compare,
        "prune": _prune,
        "delete": _delete,
    }
    if names and names[0] in actions and not Path(names[0]).is_dir():
        actions[names[0]](names[1:], flags, json)
    elif names and not Path(names[0]).exists():
        suggestion = did_you_mean(names[0], list(actions))
        raise ConfigError(f"There is no folder {names[0]!r}, and no action of that name.{suggestion} Actions: {', '.join(actions)}.")
    elif "--help" in flags or "-h" in flags:
        print("\n\n".join([f"sapwood runs {name}\n  {text}" for name, text in DESCRIPTIONS.items()]))
        print("\nEach takes --help for its options, and --json [FILE.json] for machines.")
    else:
        _list(names, flags, json)


def _list(names: list[str], flags: list[str], json: Json) -> None:
    config = parse(ListConfig(), "runs", flags, DESCRIPTIONS["list"])
    if len(names) > 1:
        raise ConfigError(f"Give one folder of runs, found {len(names)}. `sapwood runs compare` lays runs side by side.")
    folder = Path(names[0]) if names else HOME
    if names and (folder / "config.yaml").is_file() and not (folder / SWEEP).is_file():
        _show(names, flags, json)
        return
    found, screen = runs(folder), screen_for(json)
    show_list(found, screen)
    series = [] if config.out is None else history_of(found)
    if config.out is not None:
        write_history(config.out, str(folder), series)
        screen.say(f"Page: {config.out}")
    json.write({**found.to_dict(), **({"history": [entry.to_dict() for entry in series]} if config.out is not None else {})})


def _show(names: list[str], flags: list[str], json: Json) -> None:
    parse(ShowConfig(), "runs show", flags, DESCRIPTIONS["show"])
    if len(names) != 1:
        raise ConfigError(f"Give one run directory, found {len(names)}: sapwood runs show runs/my-1")
    detail = detail_of(Path(names[0]))
    show_detail(detail, screen_for(json))
    json.write(detail.to_dict())


def _compare(names: list[str], flags: list[str], json: Json) -> None:
    compare(names, parse(CompareConfig(), "runs compare", flags, DESCRIPTIONS["compare"]), json)


def compare(names: list[str], config: CompareConfig, json: Json) -> None:
    """Runs side by side, on the screen, as a page if asked for, and for machines."""
    found = compare_runs([Path(name) for name in names])
    screen = screen_for(json)
    show_comparison(found, screen)
    if config.out is not None:
        write_comparison(config.out, found)
        screen.say(f"Page: {config.out}")
    json.write(found.to_dict())


def _prune(names: list[str], flags: list[str], json: Json) -> None:
    config = parse(PruneConfig(), "runs prune", flags, DESCRIPTIONS["prune"])
    named = [Path(name) for name in names] or [one.path for one in runs(HOME).runs if one.kind != "sweep"]
    removal = old_checkpoints(named, config.keep, lose_resume=config.lose_resume)
    _confirmed(removal, "checkpoint", config.yes, screen_for(json), json)


def _delete(names: list[str], flags: list[str], json: Json) -> None:
    config = parse(DeleteConfig(), "runs delete", flags, DESCRIPTIONS["delete"])
    if not names:
        raise ConfigError("Name the runs to delete: sapwood runs delete runs/my-1")
    _confirmed(whole_runs([Path(name) for name in names]), "run", config.yes, screen_for(json), json)


def _confirmed(removal: Removal, what: str, yes: bool, screen: Screen, json: Json) -> None:
    """Say what goes, ask where somebody can answer, remove."""
    for path, bytes_ in removal.folders.items():
        screen.lines([f"{size(bytes_):>9}  {path}"])
    for sentence in removal.kept:
        screen.say(sentence)
    count = len(removal.folders)
    words = f"{count} {what}{'s' * (count != 1)}, {size(removal.bytes)}"
    if not count:
        screen.say("Nothing to remove.")
    elif not yes and not sys.stdin.isatty():
        raise ConfigError(f"This would remove {words}, for good. Nothing was removed. Say --yes to do it.")
    elif not yes and input(f"  Remove {words}, for good? [y/N] ").strip().lower() not in ("y", "yes"):
        screen.say("Nothing was removed.")
        removal = Removal({}, removal.kept)
    else:
        remove(removal)
        screen.say(f"Removed {words}.")
    json.write(removal.to_dict())
