"""What a person may write on the command line, and what comes back: order of words, switches, missing files, whole lines."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
from rich.console import Console

from sapwood.cli import chat_verb
from sapwood.cli.main import VERBS, main
from sapwood.cli.options import NAMES, parse
from sapwood.recipes import QUICKSTART, Screen, TuneConfig
from tiny.folder import write_model, write_rows

FAST = ["--dtype", "fp32", "--budget", "512", "--max-new-tokens", "4", "--shots", "", "--held-out", "4", "--max-steps", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    write_model(folder / "model")
    write_rows(folder / "my.jsonl", 20)
    assert main(["sft", str(folder / "my.jsonl"), "--model", str(folder / "model"), "--out", str(folder / "run"), *FAST]) == 0
    assert main(["eval", str(folder / "run"), "--out", str(folder / "measured"), "--json", str(folder / "measured.json")]) == 0
    return folder


def test_switches_and_empty_lists() -> None:
    config = parse(TuneConfig(), "sft", ["--full", "--shots", "", "--lr", "1e-4"], "")
    assert config.train.full
    assert config.evaluation.shots == ()
    assert config.train.optim.lr == 1e-4
    assert parse(TuneConfig(), "sft", ["--rslora"], "").train.lora.rslora
    assert not parse(QUICKSTART, "sft", ["--full", "False"], "").train.full


VERBS_WITHOUT_FLAGS = ("pull", "bench")
"""They print a usage of their own."""


@pytest.mark.parametrize(
    "words",
    [
        *([verb] for verb in VERBS if verb not in (*VERBS_WITHOUT_FLAGS, "ab", "items", "runs")),
        *(name.split() for name in NAMES if " " in name),
        ["eval", "--benchmarks"],
    ],
    ids=" ".join,
)
def test_help_says_what_stands_in_front_and_keeps_to_the_terminal(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [word for word in words if not word.startswith("-")]
    usage = f"usage: {' '.join(['sapwood', *named, NAMES[' '.join(named)]])}".rstrip() + " [-h]"
    assert len([line for line in lines if line.startswith(usage)]) == 1
    assert [line for line in lines if len(line) > 80 and not line.startswith("usage: ")] == []
    inside = [line.strip("│ ") for line in lines]
    assert ("", "") not in itertools.pairwise(inside), "two empty lines in a row"


def test_the_list_of_verbs_keeps_to_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert " ".join(VERBS["sweep"].split()) in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    {
        "a file behind options": (["sft", "--model", "MODEL", "--lr", "1e-4", "--full", "True", "my.jsonl"], "come first"),
        "no such template": (["sft", "my.jsonl", "--model", "MODEL", "--template", "none.jinja"], "none.jinja: no such file"),
        "no such config": (["sft", "none.yaml"], "none.yaml: no such file"),
        "a file as run folder": (["sft", "my.jsonl", "--model", "MODEL", "--out", "my.jsonl"], "a file has that name"),
        "too few rows": (["sft", "my.jsonl", "--model", "MODEL", "--held-out", "20"], "but there are only 20"),
        "an evaluation is no run": (["sft", "measured"], "holds an evaluation"),
        "a changed knob": (["sft", "run", "--lr", "1e-5"], "train.optim.lr: 0.0005 there, 1e-05 now"),
    }.values(),
)
def test_refusals(
    words: list[str], expected: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main([word.replace("MODEL", str(place / "model")) for word in words]) != 0
    assert expected in capsys.readouterr().err


def test_eval_tells_machines_the_settings_that_were_used(place: Path) -> None:
    assert json.loads((place / "measured.json").read_text())["config"]["out"] == str(place / "measured")


def test_chat_for_machines_writes_nothing_else(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert main(["chat", str(place / "run"), "--json", "--max-new-tokens", "2"]) == 0
    assert [message["role"] for message in json.loads(capsys.readouterr().out)["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("terminal", [False, True])
def test_long_sentences(terminal: bool) -> None:
    screen, out = Screen(), io.StringIO()
    screen.console = Console(file=out, force_terminal=terminal, width=40, color_system=None)
    screen.say("a [word] " * 20)
    lines = out.getvalue().splitlines()
    assert len(lines) > 1 if terminal else len(lines) == 1
    assert all(line.startswith(("  a [", "  [")) for line in lines), "later lines begin below the first"


def test_no_words_at_all() -> None:
    assert parse(TuneConfig(), "sft", [], "") == TuneConfig()


def test_chat_says_what_became_of_commands(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    lines = iter(["/rest", "/reset", "/quit"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert main(["chat", str(place / "run")]) == 0
    shown = capsys.readouterr().err
    assert "no command /rest" in shown
    assert "is forgotten" in shown

    def stop(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_verb, "run", stop)
    assert main(["chat"]) == 130
    assert capsys.readouterr().err == "\nStopped.\n", "a conversation leaves no run directory to name"
