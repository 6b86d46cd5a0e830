"""`sapwood doctor`: a model folder and files in; findings, a survey of every row, and a verdict out. No weights are loaded.

The files are read twice: once to find formats and broken rows, once to render, tokenise and check each conversation. Both
are streams; memory does not grow with the conversations (see `doctor_rows`). Left out on purpose: a sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sapwood.assets import Report, resolve_model
from sapwood.chat import Chat, named_template
from sapwood.chat.doctor.diagnosis import Diagnosis, diagnose, examine, in_light_of, survey_findings
from sapwood.chat.doctor.findings import Finding
from sapwood.chat.doctor.page import ShownRow, doctor_page, shown_row
from sapwood.chat.doctor.row_checks import ROW_KINDS
from sapwood.chat.doctor.survey import Survey, Surveyor
from sapwood.data import Reading, Refusal
from sapwood.data.messages import Notes
from sapwood.data.preparing import not_trained
from sapwood.data.reading import Scan
from sapwood.errors import DataError, storage
from sapwood.recipes.prepare import DataConfig, scan_files
from sapwood.recipes.screen import Advance, Screen
from sapwood.records import Conversation, Document, Record
from sapwood.run import write_atomic

SCHEMA = 1


@dataclass(frozen=True)
class Rows:
    """Rows that can be gone through as often as needed, and how they were read."""

    total: int
    """Rows to expect; 0 where nobody knows."""
    notes: list[str]
    left_out: int
    scan: Scan | None = None
    held: Sequence[Record | Refusal] = ()

    def __iter__(self) -> Iterator[Record | Refusal]:
        if self.scan is None:
            yield from self.held
            return
        notes = Notes()
        for form, source, value in self.scan.recipe.rows():
            yield self.scan.recipe.record(form, source, value, notes)


def open_rows(files: Sequence[str], config: DataConfig, report: Report) -> Rows:
    """Scan files, or a data set or task by name. Raises `DataError` and its kin with file:line."""
    found = scan_files(files, config, report)
    if isinstance(found, Reading):
        return Rows(found.total, found.lines_for_people(), 0, held=[*found.refused, *found.conversations])
    return Rows(found.total - found.left_out, found.lines_for_people(), found.left_out, scan=found)


def open_chat(name: str, template: str | Path | None, screen: Screen, *, tools_in_system: bool = False) -> Chat:
    """A model's chat, for its tokenizer and template alone: no weights are needed or fetched, and nothing of torch is loaded.

    `template` is another template by name or file. Only a model that takes images or sounds needs transformers, for its processor.
    """
    with screen.progress(f"model {name}") as advance:
        folder = resolve_model(name, weights=False, report=advance)
    if any(folder.glob("*processor_config.json")):
        from sapwood.recipes.tune import load_chat

        return load_chat(folder, template, tools_in_system=tools_in_system)
    chat = Chat.load(folder, template=None if template is None else named_template(template, folder))
    return chat.with_tools_in_system() if tools_in_system else chat


@dataclass(frozen=True)
class Examination:
    """What the doctor says. `survey` is None where there were no rows to look at."""

    model: str
    findings: list[Finding]
    survey: Survey | None
    diagnosis: Diagnosis
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For machines; the keys are described in docs/doctor.md and stay."""
        survey = self.survey
        return {
            "schema": SCHEMA,
            "verdict": self.diagnosis.verdict,
            "sentence": self.diagnosis.sentence,
            "exit_code": self.diagnosis.exit_code,
            "model": self.model,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": self.diagnosis.notes,
            "problems": self.diagnosis.problems,
            "reading": self.notes,
            "rows": None if survey is None else _record(survey),
        }


def _record(survey: Survey) -> dict[str, Any]:
    kinds = {
        kind: {
            "rows": count.rows,
            "severity": ROW_KINDS[kind].severity,
            "first": [{"where": note.where, "sentence": note.sentence, "next_step": note.next_step} for note in count.first],
        }
        for kind, count in survey.kinds.items()
    }
    sharing = {**asdict(survey.sharing), "factor": survey.sharing.factor}
    return {
        "in": survey.rows_in,
        "taken": survey.taken,
        "refused": survey.refused,
        "tokens": asdict(survey.tokens),
        "lengths": None if survey.lengths is None else asdict(survey.lengths),
        "sharing": sharing,
        "kinds": kinds,
        "prompts": survey.prompts,
        "most_common_answer": survey.most_common_answer,
    }


def examine_rows(chat: Chat, rows: Iterable[Record | Refusal], *, total: int = 0, batch: int = 8, advance: Advance | None = None) -> Survey:
    """Go through every row. Takes any iterable of conversations and refusals; only what `Surveyor` keeps is held."""
    surveyor, began = Surveyor(chat, batch=batch), time.monotonic()
    for done, row in enumerate(rows, 1):
        if isinstance(row, Refusal):
            surveyor.refuse(str(row.source or "a row made in code"), row.reason, row.fix)
        elif isinstance(row, Conversation):
            surveyor.add(row)
        elif isinstance(row, Document):
            surveyor.add_document(row)
        else:
            refusal = not_trained(row)
            surveyor.refuse(row.where, refusal.reason, refusal.fix)
        if advance is not None and done % 64 == 0:
            advance(done, total, f"{done / max(time.monotonic() - began, 1e-3):,.0f} rows/s")
    return surveyor.survey()


def examined(
    model: str, chat: Chat, rows: Rows | None, *, max_refused: float = 0.02, batch: int = 8, advance: Advance | None = None
) -> Examination:
    """Template, tokenizer and rows together, with the verdict."""
    findings = examine(chat)
    survey = None
    if rows is not None:
        survey = examine_rows(chat, rows, total=rows.total, batch=batch, advance=advance)
        findings = [*in_light_of(findings, survey), *survey_findings(survey)]
    return Examination(model, findings, survey, diagnose(findings, survey, max_refused), rows.notes if rows else [])


def picked(rows: Rows, *, first: int = 0, places: Sequence[str] = (), strict: bool = True) -> list[Conversation | Document]:
    """Conversations and texts by their number or their place (file:line), in the order of the files.

    Raises `DataError` for a place where no conversation stands, if `strict`.
    """
    wanted = set(places)
    found: list[Conversation | Document] = []
    for row in rows:
        if first <= 0 and not wanted:
            break
        if strict and isinstance(row, Refusal) and str(row.source) in wanted:
            raise DataError(f"{row}. This row is no conversation, so there is nothing to show.")
        if isinstance(row, Conversation | Document):
            if first > 0 or row.where in wanted:
                found.append(row)
            first -= 1
            wanted.discard(row.where)
    if strict and wanted:
        raise DataError(f"{sorted(wanted)[0]}: there is no such row. Name it as the doctor does, file:line, such as my.jsonl:17.")
    return found


PAGE_ROWS, OF_EACH_KIND = 40, 3


def write_page(path: Path, found: Examination, chat: Chat, rows: Rows | None, *, first: int, places: Sequence[str], command: str) -> None:
    """Write the examination as one HTML file: with the first rows, those named, and the first of each kind of trouble.

    Raises `StorageError` where the file cannot be written.
    """
    kinds_of: dict[str, list[str]] = {}
    refused: dict[str, str] = {}
    wanted: list[str] = [*places]
    for kind, count in found.survey.kinds.items() if found.survey is not None else ():
        wanted += [note.where for note in count.first[:OF_EACH_KIND]]
        for note in count.first:
            kinds_of.setdefault(note.where, []).append(kind)
            if kind == "refused":
                refused[note.where] = f"{note.sentence} {note.next_step}".strip()
    shown = []
    for conversation in picked(rows, first=first, places=wanted, strict=False) if rows is not None else ():
        where = conversation.where
        kinds = kinds_of.get(where, [])
        if where in refused:
            shown.append(ShownRow(where, tuple(kinds), (), refused[where]))
        else:
            shown.append(shown_row(chat, conversation, kinds))
    page = doctor_page(found.model, found.findings, found.survey, found.diagnosis, shown[:PAGE_ROWS], found.notes, command)
    with storage(path, "write the page"):
        write_atomic(path, page.encode("utf-8", "replace"))
