"""Parity with TRL: what counts as equal, what is compared, and one comparison with the real peer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.parity import MAX_HELD_OUT, MAX_LOSS_DIFFERENCE, SETTINGS, _talks, compared, short

from sapwood.cli.bench_verb import checkout
from sapwood.cli.main import main
from sapwood.errors import SapwoodError
from tiny.folder import write_model


def reply(*losses: float, held_out: float = 2.0) -> dict[str, Any]:
    return {"losses": list(losses), "held_out_before": 3.0, "held_out_loss": held_out}


def test_the_worst_step_counts() -> None:
    found = compared(reply(3.0, 2.5, 2.0, held_out=2.02), reply(3.0, 2.4, 2.1))
    assert found["max_loss_difference"] == pytest.approx(0.1)
    assert found["held_out_relative_difference"] == pytest.approx(0.01)
    assert found["losses_of_peer"] == [3.0, 2.4, 2.1]


@pytest.mark.parametrize(("ours", "peer"), [([1.0], [1.0, 2.0]), ([], [])])
def test_other_steps_are_no_comparison(ours: list[float], peer: list[float]) -> None:
    with pytest.raises(SapwoodError, match="did not do the same work"):
        compared(reply(*ours), reply(*peer))


def test_rows_have_the_turns_that_the_setting_names() -> None:
    for turns in {turns for _, turns in SETTINGS.values()}:
        talks = _talks(20, turns, seed=0)
        answers = [sum(message["role"] == "assistant" for message in talk) for talk in talks]
        assert len(talks) == 20
        assert all(count == 1 for count in answers) if turns == 1 else all(count > 1 for count in answers)
        assert all(talk[-1]["role"] == "assistant" for talk in talks)
        assert all(len(message["content"].split()) <= 5 for talk in talks for message in short(talk, 5))
        assert talks == _talks(20, turns, seed=0)


@pytest.mark.parametrize(
    ("words", "said"), [(["--steps", "0"], "whole number"), (["--against", "tlr"], "Did you mean 'trl'"), (["--step", "3"], "'steps'")]
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "parity", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_page_says_what_was_measured() -> None:
    found = json.loads((checkout() / "bench" / "results" / "parity.json").read_text())
    page = (checkout() / "docs" / "from-trl.md").read_text()
    assert found["equal"] is True
    assert set(found["runs"]) == set(SETTINGS)
    for name, one in found["runs"].items():
        assert len(one["losses"]) == len(one["losses_of_peer"]) == 20
        assert max(abs(a - b) for a, b in zip(one["losses"], one["losses_of_peer"], strict=True)) == one["max_loss_difference"]
        held_out = f"{one['held_out_before']:.4f} → {one['held_out_loss']:.4f} | {one['held_out_relative_difference']:.1e}"
        assert f"| {name} | {one['max_loss_difference']:.1e} | {held_out} |" in page
    settings = " ".join(f"--{name.replace('_', '-')} {found['settings'][name]}" for name in ("batch", "words", "held_out"))
    assert settings in page


@pytest.mark.slow
@pytest.mark.skipif(not (checkout() / ".venv-bench" / ".installed").is_file(), reason="`sapwood bench parity` makes the peers' environment")
def test_losses_are_those_of_the_real_trl(tmp_path: Path) -> None:
    write_model(tmp_path / "model", context=4096)
    target = tmp_path / "found.json"
    assert main(["bench", "parity", "--against", "trl", "--model", str(tmp_path / "model"), "--held-out", "4", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    assert found["max_loss_difference"] < 1e-5 < MAX_LOSS_DIFFERENCE
    assert found["held_out_relative_difference"] < 1e-6 < MAX_HELD_OUT
    assert set(found["runs"]) == set(SETTINGS)
    for run in found["runs"].values():
        assert len(run["losses"]) == 20
        assert len(set(run["losses"])) == 20
        assert run["held_out_loss"] < run["held_out_before"], "something was learned"
    assert found["versions"]["TRL"]["trl"] == "1.16.0"
