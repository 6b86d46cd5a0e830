"""The page of `sapwood template`: renderings side by side, and findings that differ. Self-contained, all data escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sapwood.chat.colour import visible
from sapwood.chat.doctor.comparing import Pair, Rendering, Segment, Source, findings_side_by_side, label_of, pieces_of
from sapwood.chat.doctor.findings import Finding
from sapwood.chat.doctor.page import PAGES
from sapwood.chat.doctor.spans import KIND_WORDS
from sapwood.records import Conversation

Side = tuple[str, Rendering, list[Finding], Source]
"""Name, rendering, findings, source."""


def comparison_page(sides: Sequence[Side], pairs: Sequence[Pair], conversation: Conversation, where: str) -> str:
    """The whole page as text, for one side or two."""
    messages = conversation.messages
    if len(sides) == 2:
        rows = [{"label": pair.label, "cells": [_cell(pair.left, pair.right), _cell(pair.right, pair.left)]} for pair in pairs]
        findings = findings_side_by_side(sides[0][2], sides[1][2])
    else:
        rows = [{"label": label_of(segment, messages), "cells": [_cell(segment, segment)]} for segment in sides[0][1].segments]
        findings = [(finding.kind, [finding], []) for finding in sides[0][2]]
    return PAGES.render(
        "compare.html",
        title=" and ".join(side[0] for side in sides),
        where=where,
        sides=sides,
        rows=rows,
        differ=[entry for entry in findings if entry[1] != entry[2]],
        alike=[kind.replace("-", " ") for kind, one, other in findings if one == other],
        words=KIND_WORDS,
    )


def _cell(segment: Segment | None, other: Segment | None) -> dict[str, Any] | None:
    if segment is None:
        return None
    pieces = [(visible(text), differs) for text, differs in pieces_of(segment.text, other.text if other is not None else "")]
    return {"kind": segment.kind, "trained": segment.trained, "tokens": segment.tokens, "pieces": pieces}
