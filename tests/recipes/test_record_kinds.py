"""Documents, preferences and prompts on their way to training: prepared alike from memory and from files, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chat.chat_folders import load
from sapwood.chat.other_rows import document_example
from sapwood.data import read
from sapwood.errors import DataError
from sapwood.evaluate import items_from
from sapwood.recipes.prepare import DataConfig, prepare, prepare_files, prepare_questions, scan_files
from sapwood.recipes.screen import Screen
from sapwood.records import Document


def write(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_documents_are_prepared_and_split(tmp_path: Path) -> None:
    chat = load(tmp_path / "model", "chatml")
    texts = [f"text {number} <|im_end|>" for number in range(12)]
    file = write(tmp_path, *[{"text": text, "page": i} for i, text in enumerate(texts)], {"text": "too long " * 2000})
    config = DataConfig(held_out=3, max_refused=0.5, cache=False)
    from_file = prepare_files([file], chat, config, Screen(quiet=True))
    from_memory = prepare(read([file]), chat, config)
    for prepared in (from_file, from_memory):
        kept, held = list(prepared.train), list(prepared.held_out)
        assert (len(kept), len(held)) == (9, 3)
        assert all(isinstance(record, Document) for record in kept + held)
        assert sorted(record.text for record in kept + held if isinstance(record, Document)) == sorted(texts)
        for record, example in zip(kept, prepared.examples, strict=True):
            assert isinstance(record, Document)
            expected = document_example(chat, record)
            assert example.rows[0].prompt_T.tolist() == expected.rows[0].prompt_T.tolist()
            assert example.rows[0].completion_T.tolist() == expected.rows[0].completion_T.tolist()
            assert example.meta["page"] == record.meta["page"]
        assert prepared.ledger.counts()["refused"] == 1
        assert any("at most 2048 are allowed" in line for line in prepared.ledger.lines_for_people())
        assert items_from(held) == [], "a document asks nothing"
    assert [record.source for record in from_file.train] == [record.source for record in from_memory.train]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "To train on the chosen ones, pass --prompt prompt --completion chosen"),
        ({"prompt": "q", "level": 3}, "prompts without answers, so there is nothing to imitate"),
    ],
)
def test_what_cannot_be_imitated_is_refused_by_name_before_a_model_is_loaded(tmp_path: Path, row: Any, said: str) -> None:
    file = write(tmp_path, row, row)
    with pytest.raises(DataError) as caught:
        scan_files([file], DataConfig(cache=False), lambda *_: None)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_prompts_are_asked_where_a_column_holds_what_is_right(tmp_path: Path) -> None:
    chat = load(tmp_path / "model", "two-roles")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    rows = [{"prompt": "q", "right": ["a", "b"], "page": 1}, {"prompt": talk, "right": 4, "page": 2}]
    refused = {"prompt": [{"role": "system", "content": "s"}, *talk[:1]], "right": 1, "page": 3}
    file, config = write(tmp_path, *rows, refused), DataConfig(reference="right", max_refused=0.5, cluster="page", cache=False)
    prepared = prepare_questions(scan_files([file], config, lambda *_: None, questions=True), chat, config, Screen(quiet=True))
    items = items_from(prepared.train, cluster="page", reference="right")
    assert [(item.reference, item.cluster) for item in items] == [(["a", "b"], "1"), (4, "2")]
    assert [[m.content for m in item.conversation.messages] for item in items] == [["q"], ["q", "a", "r"]]
    assert prepared.ledger.counts()["refused"] == 1, "the template allows no system turn, which is found before a model is loaded"
    with pytest.raises(DataError, match="to evaluate on them, name the one that holds what is right, with --reference COLUMN"):
        scan_files([file], DataConfig(cache=False), lambda *_: None, questions=True)
    with pytest.raises(DataError, match="nothing to imitate"):
        scan_files([file], config, lambda *_: None)


def test_the_choices_that_the_refusal_names_work(tmp_path: Path) -> None:
    chat = load(tmp_path / "model", "chatml")
    chosen = DataConfig(prompt="prompt", completion="chosen", held_out=0, cache=False)
    prepared = prepare_files([write(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"})], chat, chosen, Screen(quiet=True))
    assert chat.answer(prepared.examples[0].rows[0].completion_T.tolist()) == "a"
    assert prepared.train[0].meta == {"rejected": "b"}
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    whole = DataConfig(format="messages", columns=("messages=chosen",), held_out=0, cache=False)
    prepared = prepare_files([write(tmp_path, {"chosen": talk, "rejected": talk})], chat, whole, Screen(quiet=True))
    assert chat.answer(prepared.examples[0].rows[0].completion_T.tolist()) == "a"


def test_a_table_in_one_line_and_rows_by_value(tmp_path: Path) -> None:
    chat = load(tmp_path / "model", "chatml")
    path = tmp_path / "tickets.csv"
    path.write_text("text,category,lang\nNo sound,audio,en\nKein Ton,audio,de\nNo light,video,en\n")
    config = DataConfig(prompt="text", completion="category", system="Name it.", only=("lang=en",), held_out=0, cache=False)
    prepared = prepare_files([str(path)], chat, config, Screen(quiet=True))
    assert [[m.content for m in c.messages] for c in prepared.train if not isinstance(c, Document)] == [
        ["Name it.", "No sound", "audio"],
        ["Name it.", "No light", "video"],
    ]
    assert prepared.ledger.counts() | {"trained_tokens": 0, "prompt_tokens": 0} == {
        "rows_in": 3,
        "trained": 2,
        "held_out": 0,
        "refused": 0,
        "left_out": 1,
        "trained_tokens": 0,
        "prompt_tokens": 0,
    }
    assert any(line.split()[:3] == ["left", "out", "1"] for line in prepared.ledger.lines_for_people())
    with pytest.raises(DataError, match="--only names none of the 3 rows"):
        prepare_files(
            [str(path)], chat, DataConfig(prompt="text", completion="category", only=("lang=fr",), cache=False), Screen(quiet=True)
        )
