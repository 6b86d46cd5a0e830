"""The doctor's pages: data may hold anything and changes nothing of the page; what is drawn is what is trained."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chat_folders import load

from sapwood.chat import Chat, examine
from sapwood.chat.doctor.comparing import rendering, side_by_side, source_of
from sapwood.chat.doctor.comparison_page import comparison_page
from sapwood.chat.doctor.diagnosis import PROBE, diagnose, survey_findings
from sapwood.chat.doctor.page import doctor_page, shown_row
from sapwood.chat.doctor.row_checks import RowNote
from sapwood.chat.doctor.survey import Surveyor
from sapwood.records import Conversation, Message, Source

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--{{ 7*7 }}{% raw %} \"'&amp;\u2028 \x1b[31m"


class Page(HTMLParser):
    """Tags in order, the texts of script elements, and attributes that could do something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.risky: list[tuple[str, str | None]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag == "script"
        if tag == "script":
            self.scripts.append("")
        self.risky += [
            (name, value) for name, value in attrs if name.startswith("on") or (name in ("src", "href") and str(value)[:1] not in "#d")
        ]

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def row(text: str, line: int = 1) -> Conversation:
    return Conversation((Message("system", text), Message("user", text), Message("assistant", text)), source=Source(f"{text}.jsonl", line))


def page_of(chat: Chat, text: str) -> str:
    surveyor = Surveyor(chat)
    conversation = row(text)
    surveyor.add(conversation)
    surveyor.add(row(text, 2))
    surveyor.refuse(f"{text}:3", text, text)
    surveyor.note(RowNote("mojibake", f"{text}:4", text, text))
    survey = surveyor.survey()
    findings = [*examine(chat), *survey_findings(survey)]
    shown = [shown_row(chat, conversation, ["control-text"])]
    return doctor_page(text, findings, survey, diagnose(findings, survey), shown, [text], text)


def test_data_cannot_leave_its_place(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    hostile, tame = Page(page_of(chat, HOSTILE)), Page(page_of(chat, "tame"))
    assert hostile.tags == tame.tags, "data adds no element"
    assert hostile.risky == tame.risky == []
    assert hostile.scripts[-1] == tame.scripts[-1], "the one program is ours"
    assert len(hostile.scripts) == 3


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(tmp_path: Path) -> None:
    text = page_of(load(tmp_path, "chatml"), "tame")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    script = Page(text).scripts[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"(?:src|href)=\"(?!#|data:,\")|https?://|url\(|@import", text)


def test_the_rows_drawn_are_the_rows_trained(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    drawn = json.loads(Page(page_of(chat, HOSTILE)).scripts[0])
    assert len(drawn) == 1
    pieces = [piece for branch in drawn[0]["branches"] for piece in branch["pieces"]]
    turn = chat.turns(row(HOSTILE))[0]
    assert [number for _, ids, _, _ in pieces for number in ids] == [*turn.prompt.ids, *turn.ids]
    assert [number for _, ids, _, flags in pieces if flags & 1 for number in ids] == list(turn.ids)
    assert any(flags & 2 for *_, flags in pieces), "control tokens are marked"
    assert "\x1b" not in "".join(text for text, *_ in pieces)


@pytest.mark.parametrize("names", [("chatml",), ("chatml", "headers"), ("toolful", "prefilled")])
def test_comparisons_escape_too(tmp_path: Path, names: tuple[str, ...]) -> None:
    def made(text: str) -> Page:
        chats = [load(tmp_path / name, name) for name in names]
        conversation = row(text)
        renderings = [rendering(text, chat, conversation) for chat in chats]
        sides = [(text, one, examine(chat), source_of(chat)) for one, chat in zip(renderings, chats, strict=True)]
        pairs = side_by_side(*renderings, conversation.messages) if len(names) == 2 else []
        return Page(comparison_page(sides, pairs, conversation, text))

    hostile, tame = made(HOSTILE), made("tame")
    assert set(hostile.tags) <= {*tame.tags, "mark"}
    assert hostile.risky == []
    assert hostile.scripts == []


@pytest.mark.parametrize(
    ("left", "right"), [("toolful", "chatml"), ("headers", "chatml"), ("empty-thought", "prefilled"), ("two-roles", "brackets")]
)
def test_nothing_of_a_rendering_is_lost_between_two_columns(tmp_path: Path, left: str, right: str) -> None:
    chats = [load(tmp_path / name, name) for name in (left, right)]
    sides = [rendering(name, chat, PROBE) for name, chat in zip((left, right), chats, strict=True)]
    pairs = side_by_side(*sides, PROBE.messages)
    for place, side in enumerate(sides):
        cells = [(pair.left, pair.right)[place] for pair in pairs]
        assert "".join(cell.text for cell in cells if cell is not None) == side.text
        assert sum(cell.tokens for cell in cells if cell is not None) == side.tokens
        assert sum(segment.tokens for segment in side.segments) == side.tokens
    assert any(pair.same and pair.left is not None and pair.left.kind == "content" for pair in pairs), "texts stand beside each other"


def test_what_is_shown_of_a_simpler_form_keeps_the_numbers_of_its_messages(tmp_path: Path) -> None:
    """The probe of a template without a place for tools: neither its question nor its answer is called the system message."""
    shown = rendering("it", load(tmp_path, "prefilled"), PROBE)
    assert "Shown without" in shown.problem
    roles = {segment.kind: PROBE.messages[segment.message].role for segment in shown.segments if segment.message >= 0}
    assert roles == {"user": "user", "reasoning": "assistant", "content": "assistant"}
