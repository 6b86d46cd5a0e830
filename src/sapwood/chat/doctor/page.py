"""The doctor's page: findings, a survey and some rows in, one self-contained HTML file out.

Left out on purpose: all rows; those chosen are enough to see by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.chat.chat import Chat
from sapwood.chat.doctor.diagnosis import Diagnosis
from sapwood.chat.doctor.findings import Finding
from sapwood.chat.doctor.row_checks import ROW_KINDS, agreeing
from sapwood.chat.doctor.spans import KIND_WORDS, KINDS, document_kinds
from sapwood.chat.doctor.survey import Lengths, Survey, Tokens
from sapwood.chat.doctor.tree import Branch, branches_of, tree
from sapwood.chat.other_rows import document_example
from sapwood.pages import Pages, json_for_script
from sapwood.records import Conversation, Document

MOST_PIECES = 6000
"""Pieces of one row that the page draws; what lies behind is counted."""
PAGES = Pages(
    "chat/doctor/page_files",
    grouped=lambda number: f"{number:,}",
    percent=lambda share: "<1" if 0 < share < 0.005 else f"{100 * share:.0f}",
)
_WORDS = {"healthy": "Healthy", "usable": "Usable", "not trainable": "Not trainable"}
_CLASSES = {"healthy": "better", "usable": "not-shown", "not trainable": "worse"}


@dataclass(frozen=True)
class ShownRow:
    """A row as the page draws it: its place, the kinds of trouble it has, and its tree, or why there is none."""

    where: str
    kinds: tuple[str, ...]
    branches: tuple[Branch, ...]
    problem: str = ""


def shown_row(chat: Chat, record: Conversation | Document, kinds: Sequence[str]) -> ShownRow:
    """A row with its tree. Raises as `Chat.turns` does."""
    if isinstance(record, Document):
        row = document_example(chat, record).rows[0]
        return ShownRow(record.where, tuple(kinds), tuple(branches_of(chat, [row], [document_kinds(row)])))
    return ShownRow(record.where, tuple(kinds), tuple(tree(chat, record, chat.turns(record))))


def doctor_page(
    model: str,
    findings: Sequence[Finding],
    survey: Survey | None,
    diagnosis: Diagnosis,
    rows: Sequence[ShownRow] = (),
    reading: Sequence[str] = (),
    next_command: str = "",
) -> str:
    """The whole page as text. `reading` says how the files were read."""
    own = {"rows", *(survey.kinds if survey is not None else ())}  # shown as counts and tables
    about = [finding for finding in findings if finding.kind not in own]
    return PAGES.render(
        "page.html",
        script="page.js",
        model=model,
        word=_WORDS[diagnosis.verdict],
        tone=_CLASSES[diagnosis.verdict],
        sentence=diagnosis.sentence,
        next_command=next_command,
        findings={severity: [f for f in about if f.severity == severity] for severity in ("problem", "note", "ok")},
        survey=survey,
        reading=reading,
        tokens=_tokens_view(survey.tokens) if survey is not None and survey.tokens.own else [],
        lengths=_lengths_view(survey.lengths) if survey is not None and survey.lengths is not None else None,
        kinds=_kinds_view(survey) if survey is not None else [],
        shown=len(rows),
        data=json_for_script([_row_data(row) for row in rows]),
        words={kind: KIND_WORDS[kind] for kind in KINDS},
    )


def _tokens_view(tokens: Tokens) -> list[dict[str, Any]]:
    """By who wrote them, the most first; what is trained of each."""
    return [
        {
            "kind": kind,
            "word": KIND_WORDS[kind],
            "count": count,
            "share": count / tokens.own,
            "trained": tokens.trained_by_kind.get(kind, 0) / count,
        }
        for kind, count in sorted(tokens.by_kind.items(), key=lambda entry: -entry[1])
    ]


def _lengths_view(lengths: Lengths) -> dict[str, Any]:
    most = max(lengths.counts)
    width = lengths.top // len(lengths.counts)
    bars = [
        {"height": 100 * count / most, "count": count, "low": place * width, "high": (place + 1) * width}
        for place, count in enumerate(lengths.counts)
    ]
    limit = 100 * lengths.limit / lengths.top if lengths.limit is not None and lengths.limit <= lengths.top else None
    return {"bars": bars, "limit_at": limit, "all": lengths}


def _kinds_view(survey: Survey) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "severity": ROW_KINDS[kind].severity,
            "title": agreeing(ROW_KINDS[kind].title, count.rows),
            "label": kind.replace("-", " "),
            "rows": count.rows,
            "next_step": ROW_KINDS[kind].next_step,
            "first": count.first,
        }
        for kind, count in survey.kinds.items()
    ]


def _row_data(row: ShownRow) -> dict[str, Any]:
    """What the script draws from: pieces as [text, ids, kind, trained + 2 × control]."""
    branches, left = [], MOST_PIECES
    for branch in row.branches:
        pieces = [[p.text, list(p.ids), KINDS.index(p.kind), p.trained + 2 * p.control] for p in branch.pieces[:left]]
        cut = len(branch.pieces) - len(pieces)
        left -= len(pieces)
        branches.append({"parent": branch.parent, "rows": list(branch.rows), "tokens": branch.tokens, "pieces": pieces, "cut": cut})
    return {"where": row.where, "kinds": list(row.kinds), "problem": row.problem, "branches": branches}
