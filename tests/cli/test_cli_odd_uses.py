"""Odd uses of the verbs that train nothing, or train after hours: one paragraph that says what to do, before any work, and nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sapwood.cli.main import main
from sapwood.data.locations import locate
from sapwood.errors import DataError
from sapwood.run import open_run
from tiny.folder import write_model, write_rows

FAST = ["--dtype", "fp32", "--budget", "512", "--max-new-tokens", "4", "--shots", "", "--held-out", "20", "--max-steps", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows, a run, and what became of copies of them."""
    folder = tmp_path_factory.mktemp("odd")
    model, rows = write_model(folder / "model"), write_rows(folder / "rows.jsonl", 60)
    assert main(["sft", str(rows), "--model", str(model), "--out", str(folder / "run"), *FAST]) == 0
    (folder / "dir").mkdir()
    (folder / "bare").mkdir()
    shutil.copy(model / "config.json", folder / "bare")
    for name in ("unfinished", "damaged", "foreign", "moved"):
        shutil.copytree(folder / "run", folder / name)
    shutil.rmtree(folder / "unfinished" / "adapter")
    (folder / "damaged" / "environment.json").write_text("{")
    (folder / "foreign" / "items.jsonl").write_text('{"a": 1}\n')
    config = folder / "moved" / "config.yaml"
    config.write_text(config.read_text().replace(f"model: {model}", "model: gone"))
    shutil.copytree(model, folder / "torn")
    (folder / "torn" / "model.safetensors").write_bytes(bytes(100))
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.jsonl").write_bytes(bytes(range(256)) * 9)
    (folder / "words.jinja").write_text("hello")
    (folder / "open.jinja").write_text("{% for m in messages %}{{ m.content ")
    (folder / "tools.json").write_text('[{"parameters": {}}]')
    (folder / "half.json").write_text('{"a": 1')
    (folder / "prices.yaml").write_text("hour: 3")
    (folder / "list.yaml").write_text("- 1")
    (folder / "answers.jsonl").write_text('{"item": "x"}\n')
    return folder


REFUSED = {
    "template": "0 names are given",
    "template model model model": "3 names are given",
    "template rows.jsonl": "rows.jsonl: no Jinja stands in it",
    "template model/config.json": "so it is no chat template",
    "template model words.jinja": "words.jinja: no Jinja stands in it",
    "template open.jinja --model model": "not valid Jinja",
    "template dir": "no config.json and no tokenizer.json",
    "template bare": "there is no tokenizer.json",
    "template model --model other": "--model names the tokenizer for templates by name or file, and none is compared",
    "template model --conversation empty.jsonl": "the file is empty",
    "template model --conversation rows.jsonl:999": "there is no such row",
    "template model --tools tools.json": "tool 1 names no function",
    "template model --tools half.json": "not valid JSON",
    "template model --tools none.json": "no such file",
    "template model --page nowhere/page.html": "there is no folder nowhere. Make it",
    "template model --json nowhere/it.json": "there is no folder nowhere. Make it",
    "template model --json=dir": "this is a folder. Name a file in it",
    "doctor rows.jsonl --model model --batch 0": "batch is 0",
    "doctor rows.jsonl --model model --show -1": "show is -1",
    "doctor rows.jsonl --model model --fix nowhere/mended.jsonl": "there is no folder nowhere. Make it",
    "doctor rows.jsonl --model model --fix rows.jsonl": "nothing is written over",
    "doctor rows.jsonl --model model --fix mended.csv": "let its name end in .jsonl",
    "doctor binary.jsonl --model model --fix mended.jsonl": "found a binary file",
    "doctor run --model model --fix mended.jsonl": "run: a run directory, not rows",
    "doctor --model model --fix mended.jsonl": "need rows",
    "plan": "No data is named",
    "plan none.yaml": "none.yaml: no such file. Name a config.yaml that a run has left",
    "plan list.yaml": "expected `key: value` lines",
    "plan run rows.jsonl": "run is a run directory, and goes on with its own data",
    "plan rows.jsonl --model bare": "there is no tokenizer.json",
    "plan rows.jsonl --model model --memory 0": "memory is 0.0",
    "plan rows.jsonl --model model --held-out 60": "but there are only 60 in all",
    "plan rows.jsonl --model model --targets nosuch": "no layer is called 'nosuch'",
    "plan rows.jsonl --model model --json nowhere/it.json": "there is no folder nowhere",
    "decide": "No data is named",
    "decide run": "run holds another run, not a decision",
    "decide rows.jsonl --model model --held-out 0": "without items to ask",
    "decide rows.jsonl --model model --prices none.yaml": "none.yaml: no such file. Check the path.",
    "decide rows.jsonl --model model --prices prices.yaml": "unknown option `hour`",
    "decide rows.jsonl --model model --hosted none.jsonl --out d1": "none.jsonl: no such file. Name a file of lines",
    "decide rows.jsonl --model model --hosted answers.jsonl --out d2": "answers.jsonl:1: each line is one object",
    "decide rows.jsonl --model torn --out d3": "torn: transformers could not load this model: Error while deserializing header",
    "export": "Give one run directory, found 0",
    "export dir": "dir holds no config.yaml, so it is no run",
    "export model": "model is a model's folder, so it is no run",
    "export rows.jsonl": "rows.jsonl holds no config.yaml, so it is no run",
    "export unfinished": "it has not finished. Go on with `sapwood sft unfinished`",
    "export damaged": "environment.json: damaged",
    "export foreign": "items.jsonl: a record without a question",
    "export moved": "moved was trained on gone, which is not found any more",
    "export run --to dir": "an export never writes over anything",
    "export run --quant q8_0": "which only a GGUF file has",
    "export run --as gguf --quant q9": "quant is 'q9'; allowed",
    "bench nosuch": "There is no workload 'nosuch'",
    "sft rows.jsonl run": "run is a run directory, and goes on with its own data",
    "sft rows.jsonl --json nowhere/it.json": "there is no folder nowhere",
}


@pytest.mark.parametrize("words", REFUSED)
def test_odd_uses(words: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    before = {file: file.read_bytes() for file in made.iterdir() if file.is_file()}
    assert main(words.split()) in (1, 2)
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "Traceback" not in shown
    assert " ".join(REFUSED[words].split()) in shown
    assert "few-shot" not in shown, "nothing is asked before it is refused"
    assert {file: file.read_bytes() for file in made.iterdir() if file.is_file()} == before, "no file is changed, and none is left"


def test_a_run_that_is_still_written_is_left_alone(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    writer = open_run(made / "run")
    assert main(["sft", "run"]) == 1
    writer.close()
    assert "is being written by another process" in capsys.readouterr().err


def test_an_endless_run_is_planned_at_once(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    assert main(["plan", "rows.jsonl", "--model", "model", "--dtype", "fp32", "--epochs", "1e9", "--json", "plan.json"]) == 0
    found = json.loads((made / "plan.json").read_text())
    (made / "plan.json").unlink()
    assert found["rows"]["steps"] > 1e9


def test_a_folder_of_rows_may_hold_a_config(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 2)
    (tmp_path / "config.yaml").write_text("a: 1")
    assert locate([tmp_path]).files == [tmp_path / "rows.jsonl"]
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(DataError, match="a run directory, not rows"):
        locate([tmp_path])
