"""`sapwood doctor [FILES] --model M`: what the template does, and what every row becomes. Loads no model weights."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat, coloured
from sapwood.chat.doctor.terminal import Line, finding_lines, kind_lines, survey_lines
from sapwood.chat.other_rows import example_of
from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.errors import ConfigError, DataError, SapwoodError
from sapwood.recipes.examine import Examination, Rows, examined, open_chat, open_rows, picked, write_page
from sapwood.recipes.mend import check_target, mend_rows
from sapwood.recipes.prepare import DataConfig
from sapwood.recipes.screen import Screen

DESCRIPTION = "Check a model's chat template, and every row of your files against it, without loading the model's weights."
_ROWS = DataConfig(held_out=0)
STYLES = {"healthy": "bold green", "usable": "bold yellow", "not trainable": "bold red"}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """The doctor."""

    data: tuple[str, ...] = ()
    """Files to check row by row."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id."""
    template: Path | None = None
    """A template's name (`chatml`), or a file with a Jinja chat template."""
    tools_in_system: bool = False
    """Offer tools in the system message, and write calls and results as text: for a template that has no place for tools."""
    show: int = 1
    """Rows to show, from the first on, with their trained tokens marked."""
    row: tuple[str, ...] = ()
    """Rows to show by place, such as `my.jsonl:17`."""
    batch: int = 8
    """Conversations a step, for what sharing would save."""
    page: Path | None = None
    """Write the whole examination as an HTML page."""
    fix: Path | None = None
    """Write a mended copy of the rows; what was changed goes into a list beside it. The original stays as it is."""
    rows: DataConfig = field(default_factory=lambda: _ROWS)

    def __post_init__(self) -> None:
        for name, least in (("show", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {least}.")


def run(words: list[str]) -> None:
    """Examine, show, and fail where training would."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(DoctorConfig(), "doctor", flags, DESCRIPTION)
    if names and config.data:
        raise ConfigError(f"Files are named twice: {', '.join(names)} in front, and {', '.join(config.data)} after --data. Keep one.")
    config = replace(config, data=tuple(names) or config.data)
    if not config.data and (config.fix or config.row):
        raise ConfigError("--fix and --row need rows. Name files first: sapwood doctor my.jsonl --fix mended.jsonl")
    if config.fix is not None:
        check_target(config.fix)
    screen = screen_for(json)
    rows = None
    if config.data:  # first: a broken file should cost a second, not a download
        with screen.progress("reading") as advance:
            rows = open_rows(config.data, config.rows, advance)
    chat = open_chat(config.model, config.template, screen, tools_in_system=config.tools_in_system)
    with screen.progress("rows") as advance:
        found = examined(
            config.model, chat, rows, max_refused=config.rows.max_refused, batch=config.batch, advance=advance if rows else None
        )
    _tell(found, screen)
    if rows is not None:
        _show(chat, rows, config, screen)
    if config.page is not None:
        write_page(config.page, found, chat, rows, first=max(config.show, 3), places=config.row, command=_next(found, config))
        screen.say(f"Page         {config.page}")
    mending = None
    if config.fix is not None and rows is not None:
        with screen.progress("mending") as advance:
            mending = mend_rows(rows, chat, config.fix, advance)
        screen.title("Mended")
        screen.lines(mending.lines_for_people())
    json.write({**found.record(), "fix": None if mending is None else mending.record()})
    _conclude(found, config, screen)


def _tell(found: Examination, screen: Screen) -> None:
    screen.title(f"Template of {found.model}")
    show_lines(screen, finding_lines([finding for finding in found.findings if finding.kind not in _kinds(found)]))
    if found.survey is not None:
        screen.title("Rows")
        screen.lines(found.notes)
        show_lines(screen, survey_lines(found.survey))
        if found.survey.kinds:
            screen.title("Rows to look at")
            show_lines(screen, kind_lines(found.survey))


def _kinds(found: Examination) -> set[str]:
    """Kinds that the survey shows in its own way."""
    return {"rows", *(found.survey.kinds if found.survey is not None else ())}


def show_lines(screen: Screen, lines: Iterable[Line]) -> None:
    """Each line wrapped at its own indent on a terminal; whole in a file, so that a place in it can be searched for."""
    for line in lines:
        if not screen.console.is_terminal:
            screen.console.print(" " * line.indent + f"{line.mark} " * bool(line.mark) + line.text.plain, markup=False, soft_wrap=True)
            continue
        beside = Table.grid(padding=(0, 1, 0, 0))
        beside.add_row(*([Text(line.mark, style=line.style)] if line.mark else []), line.text)
        screen.show(Padding(beside, (0, 0, 0, line.indent), expand=False))


def _show(chat: Chat, rows: Rows, config: DoctorConfig, screen: Screen) -> None:
    shown = picked(rows, first=config.show if not config.row else 0, places=config.row)
    if shown:
        screen.title("As the model sees them")
    for record in shown:
        try:
            screen.show(coloured(example_of(chat, record), chat, colour=screen.console.color_system is not None))
        except SapwoodError as error:
            screen.say(str(error), "bold red")


def _conclude(found: Examination, config: DoctorConfig, screen: Screen) -> None:
    """The verdict last, with the next command."""
    diagnosis, command = found.diagnosis, _next(found, config)
    if config.fix is not None and not _template_at_fault(found):
        screen.say(f"As it was: {diagnosis.sentence} Next: {command}", STYLES["usable"])
        return
    if diagnosis.exit_code:
        raise DataError(f"{diagnosis.sentence} The findings above say what to do." + (f" Next: {command}" if command else ""))
    screen.say(f"{diagnosis.sentence} Next: {command}", STYLES[diagnosis.verdict])
    if config.page is None and config.data:
        screen.say("All of this as a page, with token ids and the rows' tree: --page doctor.html", "dim")


def _template_at_fault(found: Examination) -> bool:
    """Whether there is a problem that no mending of rows can mend."""
    return any(finding.severity == "problem" and finding.kind != "refused" for finding in found.findings)


def _next(found: Examination, config: DoctorConfig) -> str:
    """The command to go on with; empty where a template has to be chosen first."""
    words = [str(config.fix)] if config.fix is not None else [*config.data] or ["my.jsonl"]
    words += ["--model", config.model] if config.model != DEFAULT_MODEL else []
    words += ["--template", str(config.template)] if config.template is not None else []
    words += ["--tools-in-system"] if config.tools_in_system else []
    for option in fields(config.rows):
        value = getattr(config.rows, option.name)
        if value != getattr(_ROWS, option.name):
            words += [f"--{option.name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    if config.fix is not None:
        return shlex.join(["sapwood", "doctor", *words])
    if not found.diagnosis.exit_code:
        unjudged = ["--held-out", "0"] if found.survey is not None and found.survey.prompts == 1 else []
        return shlex.join(["sapwood", "sft", *words, *unjudged])
    if found.survey is not None and found.survey.refused and not _template_at_fault(found):
        return shlex.join(["sapwood", "doctor", *words, "--fix", "mended.jsonl"])
    return ""
