"""A table becomes a model in one line, on the command line and in Python; documents are trained on and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sapwood
from sapwood.cli.main import main
from sapwood.config import load_yaml
from sapwood.data import Text, columns_from
from sapwood.errors import DataError
from sapwood.recipes.tune import TuneConfig
from sapwood.run import read_records
from tiny.folder import write_model

FAST = ["--dtype", "fp32", "--budget", "512", "--max-new-tokens", "2", "--shots", "", "--held-out", "6", "--batch", "4", "--max-steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    rows = [("sky", "blue", "en"), ("grass", "green", "de")] * 16
    lines = [f"{i}: the colour of {thing},{colour},{lang}" for i, (thing, colour, lang) in enumerate(rows)]
    path.write_text("text,category,lang\n" + "\n".join(lines) + "\n")
    return path


def test_a_table_becomes_a_model_in_one_line(tickets: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = [
        "sft",
        str(tickets),
        "--prompt",
        "text",
        "--completion",
        "category",
        "--system",
        "Name the colour.",
        "--only",
        "lang=en",
        "lang=de",
    ]
    assert main([*words, "--model", str(model), "--out", str(run), *FAST]) == 0
    said = capsys.readouterr().err
    assert "read as prompt-completion (as asked): `category` answers `text`; 32 of 32 rows" in " ".join(said.split())
    items = read_records(run / "items.jsonl")
    assert [message["role"] for message in items[0]["messages"]] == ["system", "user"]
    assert {item["messages"][0]["content"] for item in items} == {"Name the colour."}
    assert {item["reference"] for item in items} <= {"blue", "green"}
    saved = load_yaml(TuneConfig, run / "config.yaml").rows
    assert (saved.prompt, saved.completion, saved.system, saved.only) == ("text", "category", "Name the colour.", ("lang=en", "lang=de"))
    # the run is measured again on the very items that it held out, and the table is examined by the same words
    assert main(["eval", str(run), "--out", str(tmp_path / "eval"), "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    assert main(["doctor", *words[1:8], "--only", "lang=de", "--model", str(model), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["in"] == 16, "those of the other language are left out"


def test_the_same_in_python_with_a_text_made_of_columns(tickets: Path, model: Path, tmp_path: Path) -> None:
    result = sapwood.sft(
        tickets,
        prompt="[{lang}] {text}\nColour?",
        completion="category",
        system="Be brief.",
        model=model,
        out=tmp_path / "run",
        dtype="fp32",
        budget=512,
        shots=(),
        max_new_tokens=2,
        held_out=6,
        max_steps=1,
        quiet=True,
    )
    (question, *_) = [item["messages"][1]["content"] for item in read_records(result.path / "items.jsonl")]
    assert question.startswith("[")
    assert question.endswith("\nColour?")
    with pytest.raises(DataError, match=r"no row has the column 'txt'. Did you mean 'text'"):
        sapwood.sft(tickets, prompt="txt", completion="category", model=model, quiet=True)


def test_documents_are_trained_on_and_measured_in_bits(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} the colour of the sky is blue"}) + "\n" for i in range(24)))
    result = sapwood.sft(path, model=model, out=tmp_path / "run", dtype="fp32", budget=512, held_out=6, max_steps=2, quiet=True)
    assert result.verdict is None
    assert result.bits, "held-out texts are measured in bits a token, as there is nothing to ask"
    assert read_records(result.path / "ledger.jsonl")[-1]["trained"] == 18
    assert "held-out" in next(iter(result.bits)).lower()


def test_prompts_are_evaluated_by_a_column_of_what_is_right(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i} the colour of the sky", "right": "blue"}) + "\n" for i in range(6)))
    result = sapwood.evaluate(path, reference="right", model=model, out=tmp_path / "eval", dtype="fp32", max_new_tokens=2, quiet=True)
    assert [arm.items for arm in result.arms.values()] == [6]
    assert {item["reference"] for item in read_records(result.path / "items.jsonl")} == {"blue"}


def test_the_flags_say_what_the_columns_are() -> None:
    columns = columns_from(["tools=functions"], prompt="a {b}", completion="c", system="s")
    assert columns == {"tools": "functions", "prompt": Text("a {b}"), "completion": "c", "system": Text("s")}
