"""`sapwood doctor [FILES] --model M`: what the template does, and what every row becomes. Loads no model weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import coloured, examine
from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.errors import DataError, SapwoodError
from sapwood.recipes.prepare import DataConfig, prepare, read_files
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model, load_chat

DESCRIPTION = "Check a model's chat template, and every row of your files against it, without loading the model's weights."
MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "problem": ("✗", "bold red")}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """The doctor."""

    data: tuple[str, ...] = ()
    """JSON Lines files to check row by row."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id."""
    template: Path | None = None
    """A file with a Jinja chat template."""
    show: int = 1
    """Rows to show with their trained tokens marked."""
    rows: DataConfig = field(default_factory=lambda: DataConfig(held_out=0, max_refused=1.0))


def run(words: list[str]) -> None:
    """Examine, show, and fail where there is a problem."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(DoctorConfig(data=tuple(names)), "doctor", flags, DESCRIPTION)
    screen = screen_for(json)
    reading = None
    if config.data:
        with screen.progress("reading") as advance:
            reading = read_files(config.data, config.rows, advance)
    chat = load_chat(fetch_model(config.model, screen), config.template)
    screen.title(f"Template of {config.model}")
    findings = examine(chat, reading.conversations if reading else ())
    for finding in findings:
        mark, style = MARKS[finding.severity]
        screen.say(f"{mark} {finding.sentence}", style)
        if finding.next_step:
            screen.say(f"    {finding.next_step}", "dim")
    problems = sum(finding.severity == "problem" for finding in findings)
    counts: dict[str, int] = {}
    if reading is not None:
        screen.title("Rows")
        prepared = prepare(reading, chat, config.rows)
        screen.lines([*prepared.notes, *prepared.ledger.lines_for_people()])
        counts = prepared.ledger.counts()
        for example in prepared.examples[: config.show]:
            screen.show(coloured(example, chat, colour=screen.console.color_system is not None))
    json.write({"findings": [asdict(finding) for finding in findings], "ledger": counts, "problems": problems})
    _conclude(problems, counts.get("refused", 0), config, screen)


def _conclude(problems: int, refused: int, config: DoctorConfig, screen: Screen) -> None:
    if problems or refused:
        parts = [f"{problems} problem{'s' * (problems != 1)} with the template"] if problems else []
        parts += [f"{refused} refused row{'s' * (refused != 1)}"] if refused else []
        raise DataError(f"{' and '.join(parts)}: see above. Mend them, then ask the doctor again.")
    screen.say(f"Healthy. Next: sapwood sft {' '.join(config.data) or 'my.jsonl'}", "bold green")


__all__ = ["DoctorConfig", "SapwoodError", "run"]
