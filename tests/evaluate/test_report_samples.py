"""Answers over time: what changed is marked, and a score is shown as what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report_runs import full_run
from sapwood.evaluate.report import write_report
from sapwood.evaluate.report_samples import MOST_QUESTIONS, changed, samples_view
from sapwood.run import open_run

WORDS = st.lists(st.sampled_from(["call", "look(", "x", "\n", "  ", "<b>", "a" * 30]), max_size=30).map(" ".join)


def sample(when: str, answer: str, right: Any, item: str = "i1") -> dict[str, Any]:
    return {"when": when, "item": item, "question": "what?", "answer": answer, "reference": "blue", "right": right}


def test_answers_of_one_question_stand_together_and_show_what_changed() -> None:
    records = [
        sample("before", "it is red", 0.0),
        sample("before", "no", None, "i2"),
        sample("step 4", "it is blue", 1.0),
        sample("step 8", "it", 0.5),
    ]
    first, second = samples_view(records).questions
    assert [answer.when for answer in first.answers] == ["before", "step 4", "step 8"]
    assert [answer.right for answer in first.answers] == [False, True, None]
    assert [answer.score for answer in first.answers] == ["", "", "50%"]
    assert first.answers[0].pieces == [("it is red", False)]
    assert first.answers[1].pieces == [("it is ", False), ("blue", True)]
    assert second.answers[0].right is None


@given(WORDS, WORDS)
def test_the_pieces_are_the_answer_and_what_is_not_marked_stood_there_before(before: str, answer: str) -> None:
    pieces = changed(before, answer)
    assert "".join(text for text, _ in pieces) == answer
    place = 0
    for text, new in pieces:
        if not new and text:
            place = before.index(text, place) + len(text)
    assert any(new for _, new in pieces) or before == answer or len(answer) < len(before)


def test_long_answers_are_marked_from_the_first_word_that_differs() -> None:
    assert changed("a b " + "c " * 900, "a x " + "c " * 900) == [("a ", False), ("x " + "c " * 900, True)]


@pytest.mark.parametrize(("more", "left_out"), [(0, 0), (3, 3)])
def test_more_questions_than_a_page_holds_are_counted(more: int, left_out: int) -> None:
    view = samples_view([sample("before", "x", 1.0, f"i{number}") for number in range(MOST_QUESTIONS + more)])
    assert (len(view.questions), view.left_out) == (MOST_QUESTIONS, left_out)


def test_the_page_shows_scores_as_the_chain_records_them(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    run = open_run(folder)
    run.append("samples", sample("before", "it is red", 0.0), sample("step 4", "it is <blue>", 1.0), sample("step 8", "\n", 0.25))
    run.close()
    page = write_report(folder).read_text()
    assert "it is <mark>&lt;blue&gt;</mark>" in page
    assert "25% right" in page
    assert "(nothing but white space)" in page
    assert page.count("✓ right</span></dt>") >= 1
