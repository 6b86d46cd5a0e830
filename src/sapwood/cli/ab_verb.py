"""`sapwood ab report [PLAN.yaml | NAME] | size PLAN.yaml | stop … ARM | resume … ARM`"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sapwood.ab.plan import Plan, changes, load_plan, records_of
from sapwood.cli.options import Json, parse, screen_for, take_json, take_names
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.recipes.screen import Screen

if TYPE_CHECKING:
    from sapwood.ab.analysis import Analysis
    from sapwood.ab.records import Book

DESCRIPTIONS = {
    "report": "Say what an A/B test shows now, and what to do: `sapwood ab report plan.yaml`. At any time, as often as wanted.",
    "size": "Say how many units show which effect, before a test begins: `sapwood ab size plan.yaml --rate 0.6`.",
    "stop": "Switch an arm off: its units are answered by the control from the next request on.",
    "resume": "Switch an arm on again: its units get it back.",
}
SIZES = (200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Where the records are."""

    records: str | None = None
    """A file, or postgresql://USER@HOST/DATABASE; beside the plan, as PLAN.db, where not given."""
    out: Path | None = None
    """Write the report as an HTML page that loads nothing from anywhere."""


@dataclass(frozen=True, kw_only=True)
class SwitchConfig:
    """Where the records are, and why."""

    records: str | None = None
    """A file, or postgresql://USER@HOST/DATABASE; beside the plan, as PLAN.db, where not given."""
    why: str = "by hand"
    """Kept with the records, and shown in reports."""


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """What is expected."""

    rate: float = 0.5
    """Mean of the primary metric under the control, as a part of its range; half is the hardest case."""
    power: float = 0.8
    """How often an effect of that size is to be shown by then."""

    def __post_init__(self) -> None:
        for name in ("rate", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a share between 0 and 1.")


def run(words: list[str]) -> None:
    """Find the action, and do it."""
    json, words = take_json(words)
    names, flags = take_names(words)
    actions: dict[str, Callable[[list[str], list[str], Json], None]] = {
        "report": _report,
        "size": _size,
        "stop": lambda names, flags, json: _switch("stop", names, flags, json),
        "resume": lambda names, flags, json: _switch("resume", names, flags, json),
    }
    if names and names[0] in actions:
        actions[names[0]](names[1:], flags, json)
    elif names:
        raise ConfigError(f"`sapwood ab` has no action {names[0]!r}.{did_you_mean(names[0], list(actions))} Actions: {', '.join(actions)}.")
    else:
        print("\n\n".join([f"sapwood ab {name}\n  {text}" for name, text in DESCRIPTIONS.items()]))
        print("\nEach takes --help for its options, and --json [FILE.json] for machines. A test is begun by `sapwood serve --experiment`.")
        if "--help" not in flags and "-h" not in flags:
            raise ConfigError("Name an action.")


def _report(names: list[str], flags: list[str], json: Json) -> None:
    config = parse(ReportConfig(), "ab report", flags, DESCRIPTIONS["report"])
    if len(names) > 1:
        raise ConfigError(f"Give one plan or the name of one test, found {len(names)}: {', '.join(names)}.")
    screen = screen_for(json)
    plan, book = _opened(names[0] if names else None, config.records)
    from sapwood.ab.analysis import analyse, as_dict
    from sapwood.ab.page import write_page
    from sapwood.ab.prediction import prediction

    try:
        with screen.progress("Analysing") as advance:
            found = analyse(book.read(), advance=advance)
    finally:
        book.close()
    predicted = prediction(found)
    _show(found, screen)
    if predicted is not None:
        screen.say(predicted.line)
    if plan is not None and (differing := changes(book.plan, plan)):
        screen.say(f"The plan has changed since the test began ({', '.join(differing)}); this is said of the one it began with.", "yellow")
    if config.out is not None:
        write_page(config.out, found, predicted)
        screen.say(f"Page: {config.out}")
    json.write({**as_dict(found), "predicted": predicted.to_dict() if predicted else None})


def _opened(name: str | None, records: str | None) -> tuple[Plan | None, Book]:
    """(the plan's file as it is now, None where a test was named; its records)"""
    try:
        from sapwood.ab.records import reopen
    except ImportError as error:
        raise ConfigError(f"Records need {error.name}, which is not installed: pip install 'sapwood[web]'") from None
    if name is not None and (Path(name).suffix in (".yaml", ".yml") or Path(name).is_file()):
        plan = load_plan(Path(name))
        return plan, reopen(plan.name, records or records_of(Path(name)))
    if records is None:
        raise ConfigError("Name the plan's file, or give --records with the name of a test: sapwood ab report plan.yaml")
    return None, reopen(name, records)


def _show(found: Analysis, screen: Screen) -> None:
    from sapwood.ab.page import row

    screen.title(f"{found.decision.capitalize()}")
    screen.say(found.line)
    screen.title("Split")
    screen.lines([f"{name:<14} {units:>9,} units, {expected:>11,.1f} expected" for name, units, expected in found.split.arms])
    state = "BROKEN: find out what loses or moves units" if found.split.broken else "as planned"
    screen.say(f"The split is {state} (p = {found.split.p_value:.2g}, whenever one looks).")
    for one in found.comparisons if not found.split.broken else ():
        screen.title(f"{one.arm} against {found.plan.control.name}")
        screen.lines([f"{'':<14} {found.plan.control.name[:10]:>10} {one.arm[:10]:>10} {'units':>8}  gain (positive is better)"])
        for measured in (one.primary, *one.guardrails):
            name, control, treated, units, gain, level, said = row(measured)
            screen.lines([f"{name[:14]:<14} {control:>10} {treated:>10} {units:>8}  {gain}, {level}: {said}"])
            for note in _notes(measured.unsettled, measured.late, measured.silent, measured.silence_differs):
                screen.say(f"{name}: {note}", "dim")
        if len(found.comparisons) > 1:
            screen.say(f"{one.decision.capitalize()}: {one.line}")
    for line in found.switches:
        screen.say(line)


def _notes(unsettled: int, late: int, silent: tuple[int, int], differs: bool) -> list[str]:
    return [
        *([f"{unsettled:,} units are not settled yet."] if unsettled else []),
        *([f"{late:,} outcomes came after their unit's window and do not count."] if late else []),
        *([f"{silent[0]:,} and {silent[1]:,} units gave no outcome and are left out."] if sum(silent) else []),
        *(["the arms differ in how many units gave an outcome, so this is a gain among those who answered."] if differs else []),
    ]


def _size(names: list[str], flags: list[str], json: Json) -> None:
    config = parse(SizeConfig(), "ab size", flags, DESCRIPTIONS["size"])
    if len(names) != 1:
        raise ConfigError(f"Give one plan, found {len(names)}: sapwood ab size plan.yaml")
    from sapwood.ab.analysis import two_digits
    from sapwood.stats import detectable, units_for, variance_of

    plan = load_plan(Path(names[0]))
    metric, treatment = plan.metric(plan.primary), plan.treatments[0]
    share = treatment.share / (treatment.share + plan.chances(len(plan.ramp) - 1 if plan.ramp else 0)[0])
    alpha = plan.alpha * (0.8 if plan.guardrails else 1.0) / len(plan.treatments)
    variance, span = variance_of(config.rate, share), metric.high - metric.low
    needed = two_digits(units_for(plan.effect / span, variance, alpha, plan.units, share, config.power))
    rows = [(n, span * detectable(n, variance, alpha, plan.units, share, config.power)) for n in SIZES]
    screen = screen_for(json)
    screen.title(f"What {plan.name} can show in {plan.primary}, {100 * config.power:g} times in a hundred")
    screen.lines([f"{'units':>9}  smallest gain", *(f"{n:>9,}  {delta:.3g}" for n, delta in rows)])
    screen.say(f"A gain of {plan.effect:g} takes about {needed:,} units of the two arms together, and often fewer.")
    if not 0.5 <= needed / plan.units <= 2:
        screen.say(f"The plan expects {plan.units:,}: write `units: {needed}` into it, for intervals are narrowest there.", "yellow")
    json.write({"needed": needed, "effect": plan.effect, "detectable": [{"units": n, "gain": delta} for n, delta in rows]})


def _refuse_in_vain(book: Book, arm: str) -> None:
    """Raise `ConfigError` where a running server would switch the arm off again at its next look."""
    from sapwood.ab.analysis import analyse

    harm = next(one.harm for one in analyse(book.read(), pictures=False).comparisons if one.arm == arm)
    if book.plan.fallback and harm:
        raise ConfigError(
            f"{arm} stays off: {harm} The plan falls back by itself, so a server would switch it off again at its next look. Mend the arm, "
            "and begin a test of another name; or begin one with `fallback: false`."
        )


def _switch(action: str, names: list[str], flags: list[str], json: Json) -> None:
    config = parse(SwitchConfig(), f"ab {action}", flags, DESCRIPTIONS[action])
    if len(names) != 2:
        raise ConfigError(f"Give the plan (or the test's name) and one arm: sapwood ab {action} plan.yaml ARM")
    _, book = _opened(names[0], config.records)
    try:
        arms = [arm.name for arm in book.plan.treatments]
        if names[1] not in arms:
            raise ConfigError(f"There is no arm {names[1]!r} to {action}.{did_you_mean(names[1], arms)} Arms: {', '.join(arms)}.")
        if action == "resume":
            _refuse_in_vain(book, names[1])
        changed = book.switch(1 + arms.index(names[1]), action == "resume", config.why)
    finally:
        book.close()
    screen = screen_for(json)
    state = "on" if action == "resume" else "off"
    screen.say(f"{names[1]} is {state}{'' if changed else ' already'}. `sapwood ab report {names[0]}` says what it showed.")
    json.write({"arm": names[1], "on": action == "resume", "changed": changed})
