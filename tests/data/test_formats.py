"""Formats beside messages and ShareGPT: pairs, texts made of columns, preferences, prompts, documents; rows kept by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.data import Only, Reading, Text, columns_from, read
from sapwood.data.exactness import oversized_number
from sapwood.data.formats import FORMATS, PAIRS
from sapwood.errors import ConfigError, DataError
from sapwood.records import Document, Message


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(reading: Reading) -> list[list[tuple[str, str]]]:
    assert reading.refused == []
    return [[(message.role, message.content) for message in c.messages] for c in reading.conversations]


def why(reading: Reading) -> list[str]:
    return [f"{refusal.reason} | {refusal.fix}" for refusal in reading.refused]


# ------------------------------------------------------------------ pairs


@pytest.mark.parametrize("form", sorted(PAIRS))
def test_pairs_are_read_directly_and_said(tmp_path: Path, form: str) -> None:
    asked, answered = PAIRS[form]  # type: ignore[index]
    reading = read([write(tmp_path, {asked: "q", answered: "a", "id": 1}, {asked: "r", answered: "b", "id": 2})])
    assert turns(reading) == [[("user", "q"), ("assistant", "a")], [("user", "r"), ("assistant", "b")]]
    assert [c.meta for c in reading.conversations] == [{"id": 1}, {"id": 2}]
    assert f"read as {form} (found from the columns): `{answered}` answers `{asked}`; 2 of 2 rows" in reading.guess
    assert reading.guess.endswith("Kept beside them, not sent to the model: id.")


def test_several_right_answers_train_the_first(tmp_path: Path) -> None:
    reading = read(
        [write(tmp_path, {"input": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "ideal": ["a", "b"]})]
    )
    assert turns(reading) == [[("system", "s"), ("user", "q"), ("assistant", "a")]]
    assert "1 × `ideal` lists several answers: the first is trained" in "\n".join(reading.lines_for_people())


def test_the_better_of_two_fitting_formats_is_taken_and_the_other_said(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "question": "x", "answer": "y"}
    guess = read([write(tmp_path, row)]).guess
    assert "read as messages" in guess
    assert "1 rows would also fit question-answer; pass --format to choose it" in guess


# ------------------------------------------------------------------ columns by name, texts made of columns


def test_a_table_of_tickets_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tickets.csv"
    path.write_text('title,body,category,id\nNo sound,"It hums, ""loudly""",audio,7\nDark,No light,video,8\n')
    columns = columns_from([], prompt=r"Title: {title}\n{body}", completion="category", system="Name the category.")
    reading = read([path], columns=columns)
    assert turns(reading) == [
        [("system", "Name the category."), ("user", 'Title: No sound\nIt hums, "loudly"'), ("assistant", "audio")],
        [("system", "Name the category."), ("user", "Title: Dark\nNo light"), ("assistant", "video")],
    ]
    assert reading.conversations[0].meta == {"title": "No sound", "body": 'It hums, "loudly"', "id": "7"}
    assert r"(as asked): `category` answers `Title: {title}\n{body}`; 2 of 2 rows" in reading.guess


@given(
    st.dictionaries(st.sampled_from(["a", "b c", "ü"]), st.text(max_size=9), min_size=3), st.lists(st.sampled_from(["a", "b c", "ü", None]))
)
def test_a_text_is_its_columns_side_by_side(row: dict[str, str], parts: list[str | None]) -> None:
    template = "".join("· " if part is None else f"{{{part}}}" for part in parts)
    assert Text(template).fill(row) == "".join("· " if part is None else row[part] for part in parts), "braces in cells are only text"


def test_braces_of_json_are_no_columns(tmp_path: Path) -> None:
    text = columns_from([], prompt='{"q": {q}, "n": [{"x": 1}]}')["prompt"]
    assert isinstance(text, Text)
    assert text.columns == ("q",)
    assert text.fill({"q": "hi {q}"}) == '{"q": hi {q}, "n": [{"x": 1}]}'


def test_numbers_become_texts_and_it_is_said(tmp_path: Path) -> None:
    reading = read([write(tmp_path, {"t": 1.5, "c": True}, {"t": "x", "c": 3})], columns=columns_from([], prompt="t", completion="c"))
    assert turns(reading) == [[("user", "1.5"), ("assistant", "true")], [("user", "x"), ("assistant", "3")]]
    assert "2 × `c` holds numbers, or true and false: they are written as text" in "\n".join(reading.lines_for_people())


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, *[{"title": "t", "label": "x"}] * 3, {"title": None, "label": "x"}, {"title": ["t"], "label": "x"})
    with pytest.raises(DataError, match=r"no row has the column 'titel'. Did you mean 'title'\?"):
        read([path], columns=columns_from([], prompt="Title: {titel}", completion="label"))
    reading = read([path], columns=columns_from([], prompt="Title: {title}", completion="label"))
    assert why(reading) == [
        "missing column: `title` is null; `Title: {title}` needs it | give the row a `title`, or delete it",
        "content is not text: `title` is a list | give text",
    ]
    for arguments, said in [
        ({"prompt": "a"}, "named twice, by --columns and by --prompt"),
        ({"completion": " "}, "completion is empty"),
        ({"system": ""}, "system is empty"),
    ]:
        with pytest.raises(DataError, match=said):
            columns_from(["prompt=a"], **arguments)


def test_a_system_text_is_for_rows_without_one(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    without = {"messages": own["messages"][1:]}
    reading = read([write(tmp_path, own, without)], columns=columns_from([], system="given"))
    assert [c.messages[0].content for c in reading.conversations] == ["own", "given"]


# ------------------------------------------------------------------ preferences


def ask(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": ask("q"), "chosen": ask("", "a")[1:], "rejected": ask("", "b")[1:]},
        {"prompt": "q", "chosen": ask("q", "a"), "rejected": ask("q", "b")},
        {"chosen": ask("q", "a"), "rejected": ask("q", "b")},
        {"prompt": json.dumps(ask("q")), "chosen": ask("q", "a"), "rejected": "b"},
        {"chosen": json.dumps(ask("q", "a")), "rejected": json.dumps(ask("q", "b"))},
    ],
)
def test_preferences_in_all_their_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    tools = [{"name": "f"}]
    reading = read([write(tmp_path, {**row, "tools": tools, "chat_template_kwargs": {"x": 1}, "rater": 3})])
    (pair,) = reading.preferences
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        (Message("user", "q"),),
        (Message("assistant", "a"),),
        (Message("assistant", "b"),),
    )
    assert (pair.tools[0]["function"]["name"], pair.template_arguments, pair.meta) == ("f", {"x": 1}, {"rater": 3})
    assert (reading.total, reading.conversations, "read as preference" in reading.guess) == (1, [], True)


def test_an_implicit_prompt_is_all_that_both_share(tmp_path: Path) -> None:
    rows = [{"chosen": ask("q", "x", "r", "a"), "rejected": ask("q", "x", "r", "b")}]
    (pair,) = read([write(tmp_path, *rows)], columns=columns_from([], system="s")).preferences
    beside = [{"prompt": ask("q", "x", "r"), **rows[0]}]
    (same,) = read([write(tmp_path, *beside)], columns=columns_from([], system="s")).preferences
    assert [[m.content for m in part] for part in (same.prompt, same.chosen)] == [["s", "q", "x", "r"], ["a"]]
    assert [m.content for m in pair.prompt] == ["s", "q", "x", "r"]
    talk = pair.conversation(pair.chosen)
    assert [m.weight for m in talk.messages if m.role == "assistant"] == [0, 1], "the prompt's own answers are context"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": ask("q", "a"), "rejected": ask("r", "b")}, "no prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "no preference"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty completion: the answer in `rejected`"),
        ({"prompt": "q", "chosen": ask("q"), "rejected": "b"}, "no assistant turn: `chosen` ends in"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "missing column: `chosen` is null"),
        ({"prompt": "q", "chosen": {"a": 1}, "rejected": "b"}, "no role"),
    ],
)
def test_refused_preferences(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    reading = read([write(tmp_path, *[{"prompt": "q", "chosen": "a", "rejected": "b"}] * 30, row)])
    assert len(reading.preferences) == 30
    assert said in why(reading)[0]
    assert reading.total == 31


# ------------------------------------------------------------------ prompts, documents


def test_prompts_alone(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "answer": 4}, {"prompt": ask("q", "a", "r"), "answer": 5}]
    reading = read([write(tmp_path, *rows)])
    assert turns(reading) == [[("user", "q")], [("user", "q"), ("assistant", "a"), ("user", "r")]]
    assert [c.meta for c in reading.conversations] == [{"answer": 4}, {"answer": 5}]
    assert "read as prompts (found from the columns): questions without answers; 2 of 2" in reading.guess


def test_prompts_among_pairs_are_broken_pairs(tmp_path: Path) -> None:
    reading = read([write(tmp_path, *[{"prompt": "q", "completion": "a"}] * 30, {"prompt": "r"})])
    assert why(reading)[0].startswith("missing column: `completion` is missing")
    with pytest.raises(DataError, match=r"two formats in one file: 2 rows of prompt-completion .* 1 rows of prompts"):
        read([write(tmp_path, *[{"prompt": "q", "completion": "a"}] * 2, {"prompt": "r"})])


def test_documents(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "once", "page": 1}, {"text": " "}, {"text": None}, {"text": 3})
    reading = read([path])
    assert [(d.text, d.meta, d.where) for d in reading.documents] == [("once", {"page": 1}, f"{path}:1")]
    assert [reason.split(":")[0] for reason in why(reading)] == ["empty text", "missing column", "content is not text"]
    assert (reading.total, reading.conversations) == (4, [])
    assert "read as text (found from the columns): whole texts to go on training on" in reading.guess
    assert isinstance(reading.documents[0], Document)


@pytest.mark.parametrize("label", ["label", "category", "sentiment"])
def test_texts_with_labels_are_asked_about(tmp_path: Path, label: str) -> None:
    path = write(tmp_path, {"text": "nice", label: "pos"})
    with pytest.raises(
        DataError, match=rf"pass --prompt text --completion {label}; to go on training on the texts alone, pass --format text"
    ):
        read([path])
    assert turns(read([path], columns=columns_from([], prompt="text", completion=label))) == [[("user", "nice"), ("assistant", "pos")]]
    assert len(read([path], format="text").documents) == 1


def test_every_format_has_a_name_that_may_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, {"zzz": 1})
    for form in FORMATS:
        reading = read([path], format=form)
        assert [reason.split(":")[0] for reason in why(reading)] in (["missing column"], ["no prompt"]), form


# ------------------------------------------------------------------ rows by value


def test_only_rows_with_these_values(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "lang": lang, "n": n} for lang in ("de", "en", None) for n in (1, 2)]
    path = write(tmp_path, *rows, "broken")
    reading = read([path], only=Only.parse(["lang=de", "lang=en", "n=1"]))
    assert [(c.meta["lang"], c.meta["n"]) for c in reading.conversations] == [("de", 1), ("en", 1)]
    assert (reading.left_out, len(reading.refused), reading.total) == (4, 1, 7)
    assert [c.meta["lang"] for c in read([path], only=Only.parse(["lang=null"])).conversations] == [None, None]
    with pytest.raises(DataError, match=r"no row has the column 'lan'\. Did you mean 'lang'"):
        read([path], only=Only.parse(["lan=de"]))
    for entry in ("lang", "=de"):
        with pytest.raises(ConfigError, match="is not COLUMN=VALUE"):
            Only.parse([entry])


# ------------------------------------------------------------------ JSON stays what it is


def test_tool_arguments_keep_their_json(tmp_path: Path) -> None:
    """Whole numbers stay whole, keys keep their order, nulls stay, and no row gets another one's keys."""
    arguments = [{"z": 1, "a": 1.0, "big": 2**63 - 1, "none": None, "deep": [{"b": [], "a": {}}]}, {"only": True}]
    for as_text in (False, True):
        rows = [
            {"messages": [*ask("q"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": json.dumps(a) if as_text else a}]}]}
            for a in arguments
        ]
        found = [c.messages[1].tool_calls[0].arguments for c in read([write(tmp_path, *rows)]).conversations]
        assert [json.dumps(a) for a in found] == [json.dumps(a) for a in arguments]


def test_numbers_that_would_lose_digits_are_refused(tmp_path: Path) -> None:
    """orjson makes floats of whole numbers beyond 64 bits; as row, as entry of an array, and in arguments written as text."""
    large, fits = 2**64, [2**64 - 1, -(2**63), 10**18]
    good = {"prompt": "q " + "12345678901234567890123", "completion": "a", "n": fits, "float": 1234567890123456789012.5}
    bad = {"prompt": "q", "completion": "a", "n": large}
    text = {"prompt": "q", "completion": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": f'{{"n": {large}}}'}]}]}
    for name, content in [
        ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in (good, bad, text))),
        ("rows.json", json.dumps([good, bad, text])),
    ]:
        path = tmp_path / name
        path.write_text(content)
        reading = read([path])
        assert [c.meta["n"] for c in reading.conversations] == [fits]
        assert [(r.source.line, r.reason) for r in reading.refused if r.source] == [
            (line, f"number too large: {large} has more than 64 bits and would lose its last digits") for line in (2, 3)
        ]


@given(st.integers(-(2**70), 2**70) | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]), st.text(max_size=30))
def test_the_quick_look_for_large_numbers_misses_none(number: int, before: str) -> None:
    fits = -(2**63) <= number < 2**64
    assert oversized_number(json.dumps([before, {"n": number}]).encode()) == ("" if fits else str(number))


@pytest.mark.parametrize("before", range(20))
def test_the_quick_look_sees_the_shortest_wherever_it_stands(before: int) -> None:
    assert oversized_number(b" " * before + b"[-9223372036854775809]") == "-9223372036854775809"
