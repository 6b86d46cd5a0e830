"""The pieces between a source and a page: what becomes a candidate, what is covered, what is drawn, what is marked as different."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from review_runs import HOSTILE, candidates, write_run

from sapwood.errors import DataError
from sapwood.review.batch import BatchConfig, arms_of
from sapwood.review.diffs import changes
from sapwood.review.masking import Mask, uncover
from sapwood.review.rendering import markdown, turn_of
from sapwood.review.rubric import Rubric, rubric_from, rubric_of
from sapwood.review.sources import read_source
from sapwood.review.verdicts import PAIR, lean, swapped
from sapwood.review.web.cases import view_of

TAGS = re.compile(r"<(/?)([a-zA-Z0-9]+)([^>]*)>")
ALLOWED = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else orjson.dumps(row)) + b"\n" for row in rows))
    return path


def test_a_run_gives_every_arm_with_the_scorers_opinion(tmp_path: Path) -> None:
    found = read_source(write_run(tmp_path / "refunds-1", candidates(5)))
    assert len(found.candidates) == 5
    first = found.candidates[0]
    assert set(first.answers) == set(first.machine) == {"tuned", "acme/secret-7b"}
    assert first.source == "mails.jsonl:1"
    assert "secret-7b" in found.masked, "the run's own model is covered in answers"
    assert arms_of(found.candidates, BatchConfig()) == ("tuned", "acme/secret-7b")


def test_of_many_arms_the_tuned_one_meets_the_best_other() -> None:
    from dataclasses import replace

    made = [
        replace(
            one,
            answers={**one.answers, "plain": {"role": "assistant", "content": "x"}},
            machine={"tuned": 1.0, "acme/secret-7b": 0.2, "plain": 0.6},
        )
        for one in candidates(3)
    ]
    assert arms_of(made, BatchConfig()) == ("tuned", "plain")


def test_pairs_traffic_and_conversations(tmp_path: Path) -> None:
    pairs = write(
        tmp_path / "pairs.jsonl",
        {
            "prompt": "q",
            "answers": {"x": "one", "y": {"content": "two"}},
            "gold": "y",
            "severity": 0.5,
            "uncertainty": 2,
            "judge": {"x": 1},
        },
        {"prompt": "r", "answers": {"x": "one"}, "gold": "bad"},
    )
    one, two = read_source(pairs).candidates
    assert (one.gold, one.severity, one.doubt, one.machine) == ({"y": "better"}, 0.5, 1.0, {"x": 1.0})
    assert two.gold == {"x": "bad"}
    said = {"choices": [{"message": {"role": "assistant", "content": "four"}}]}
    traffic = read_source(write(tmp_path / "t.jsonl", {"request": {"messages": [{"role": "user", "content": "2+2"}]}, "response": said}))
    assert traffic.words == "a served model's traffic"
    assert [one.answers["answer"]["content"] for one in traffic.candidates] == ["four"]
    chosen = read_source(write(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "good", "rejected": "bad"})).candidates[0]
    assert {name: answer["content"] for name, answer in chosen.answers.items()} == {"chosen": "good", "rejected": "bad"}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data = read_source(write(tmp_path / "d.jsonl", {"messages": turns}))
    assert data.words == "a data set"
    assert data.candidates[0].source.endswith("d.jsonl:1")


def test_rows_that_cannot_be_judged_are_named(tmp_path: Path) -> None:
    mixed = write(
        tmp_path / "m.jsonl",
        {"prompt": "q", "answers": {"x": "one", "y": "two"}},
        {"prompt": "q", "answers": {}},
        {"answers": {"x": "one", "y": "two"}},
        {"prompt": "q", "answers": {"x": "a", "y": "b"}, "gold": "z"},
        {"prompt": "q", "answers": {"x": 5, "y": "b"}},
        b"{broken",
        {"messages": []},
    )
    found = read_source(mixed)
    assert len(found.candidates) == 1
    assert [int(re.search(r"m\.jsonl:(\d)", line)[1]) for line in found.refused] == [2, 3, 4, 5, 6, 7]  # type: ignore[index]
    with pytest.raises(DataError, match="no such run, file"):
        read_source(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no answers to judge"):
        read_source(tmp_path / "empty")
    with pytest.raises(DataError):
        read_source(write(tmp_path / "e.jsonl"))


@given(st.text(max_size=200), st.lists(st.sampled_from(["GPT-4o", "Claude", "acme/x-1", "⟦name 1⟧", "llama", "Llama 3.1"]), max_size=4))
def test_covered_names_come_back_and_no_name_is_left(text: str, names: list[str]) -> None:
    mask = Mask(["acme/x-1"])
    whole = f" {text} ".join(["", *names, ""])
    covered, found = mask.cover(whole)
    assert not re.search(r"(?<![^\W_])(GPT|Claude|acme/x-1)(?![^\W\d_])", covered)
    assert uncover(covered, found) == re.sub(r"⟦name (\d+)⟧", r"[name \1]", whole)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_whatever_is_written_only_harmless_tags_come_out(text: str) -> None:
    for made in (text, text + HOSTILE, f"<{text}>", f"[a]({text})", f"![a]({text})", f"| a |\n|---|\n| {text} |"):
        html = str(markdown(made))
        for _, tag, attributes in TAGS.findall(html):
            assert tag in ALLOWED
            assert not re.search(r"\bon\w+\s*=|\bsrc\s*=|\bstyle\s*=", re.sub(r'"[^"]*"', '""', attributes))
            for address in re.findall(r'href="([^"]*)"', attributes):
                assert re.match(r"(?i)(https?://|mailto:)", address), address


def test_what_a_message_may_hold_is_shown() -> None:
    call = {"type": "function", "function": {"name": "refund", "arguments": {"order": 7, "why": "broken <b>"}}}
    turn = turn_of({"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm"}, Mask())
    assert [(one.name, one.arguments) for one in turn.calls] == [("refund", (("order", "7"), ("why", "broken <b>")))]
    assert "hm" in str(turn.reasoning)
    assert "&lt;b&gt;" in str(turn_of({"role": "tool", "content": '{"x": "<b>"}'}, Mask()).body)
    long = turn_of({"role": "user", "content": "word " * 3000}, Mask())
    assert long.long
    assert "more letters are not shown" in str(markdown("x" * 400_001))
    assert "\u202e" not in str(turn_of({"role": "user", "content": "a\u202eb"}, Mask()).body)


def test_no_name_is_left_in_calls_tools_or_addresses() -> None:
    """What names who answered may stand in a tool's name, in an argument's, or in where a picture lies."""
    mask = Mask(["bluebird-7b"])
    function = {"name": "bluebird-7b_search", "arguments": {"bluebird-7b": "GPT-4o"}}
    content = [{"type": "image", "uri": "out/bluebird-7b/cat.png"}, {"type": "text", "text": "![by bluebird-7b](http://x/bluebird-7b.png)"}]
    turn = turn_of({"role": "assistant", "content": content, "tool_calls": [{"function": function}]}, mask)
    assert [(one.name, one.arguments) for one in turn.calls] == [("⟦name 1⟧_search", (("⟦name 1⟧", "⟦name 1⟧"),))]
    assert "bluebird" not in str(turn.body)
    assert str(turn.body).count("⟦name") == 3
    asked = ({"role": "user", "content": "Which?"},)
    case = SimpleNamespace(
        id=1, asked=asked, tools=[{"function": function}], arm_a="x", arm_b=None, answers={"x": {"content": "a"}}, reference=None
    )
    batch = SimpleNamespace(mask=mask, open=True)
    assert "bluebird" not in view_of(case, batch, "a").tools
    assert "bluebird" in view_of(case, SimpleNamespace(mask=mask, open=False), "a").tools, "closed, it is shown as it is"


@given(st.text(max_size=120), st.text(max_size=120))
def test_a_difference_gives_both_texts_back(before: str, after: str) -> None:
    found = list(changes(before, after))
    if "".join(re.findall(r"\s+|\w+|[^\w\s]", before)) == before:
        assert "".join(text for kind, text in found if kind != "new") == before
        assert "".join(text for kind, text in found if kind != "gone") == after


def test_verdicts_mean_the_same_from_either_side() -> None:
    for choice in PAIR:
        for left in "ab":
            value = lean(choice.value, left)
            assert value == lean(swapped(choice.value, left), "a")
            assert swapped(swapped(choice.value, left), left) == choice.value
    assert lean("a", "b") == 0.0
    assert len({choice.key for choice in PAIR}) == len(PAIR)


def test_a_rubric_is_that_of_the_requirements_and_comes_back() -> None:
    from sapwood.requirements import Criterion, ErrorType, Requirements, Task

    wanted = Requirements(
        name="x", tasks=(Task(name="t", about="do it"),), errors=(ErrorType(name="e", severity=4.0),), rubric=(Criterion(name="c"),)
    )
    rubric = rubric_of(wanted)
    assert rubric_from(rubric.to_dict()) == rubric
    assert (rubric.severity("e"), rubric.criteria[0].anchors, "do it" in rubric.about) == (4.0, ("no", "yes"), True)
    assert rubric_of(None) == Rubric()
