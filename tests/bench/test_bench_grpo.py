"""`sapwood bench grpo`: refusals, our own side through the whole verb, and one comparison with the real peer."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench.grpo import PHASES, SHAPES, TUNED_ON, _same_work
from bench.reward import reward_of
from bench.sweep import candidates

from sapwood.cli.bench_verb import checkout
from sapwood.cli.main import main
from sapwood.errors import SapwoodError
from tiny.folder import write_model


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "tlr"], "Did you mean 'trl'"),
        (["--lengths", "middle"], "short"),
        (["--rounds", "0"], "whole number from 1 on"),
        (["--kl", "-1"], "a number above it"),
        (["--prompt", "3"], "'prompts'"),
    ],
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "grpo", *words]) == 2
    assert said in capsys.readouterr().err


def measured(tmp_path: Path, *words: str) -> dict[str, Any]:
    model, target = write_model(tmp_path / "model", context=4096), tmp_path / "found.json"
    asked = ["--model", str(model), "--out", str(tmp_path / "out"), "--dtype", "fp32", "--threads", "1", "--json", str(target)]
    assert main(["bench", "grpo", *asked, *words]) == 0
    found: dict[str, Any] = json.loads(target.read_text())
    assert found == json.loads((tmp_path / "out" / "grpo.json").read_text())
    ElementTree.parse(tmp_path / "out" / "grpo.svg")
    return found


def test_ours_alone_through_the_verb(tmp_path: Path) -> None:
    found = measured(tmp_path, "--against", "none", "--lengths", "short", "--rounds", "2", "--kl", "0.1", "--prompts", "1")
    assert found["ratio_short"] is found["ratio_long"] is None
    (short,) = found["lengths"].values()
    assert short["sampled_tokens"] == short["trained_tokens"] == 8 * 64
    assert short["row_tokens"] == 8 * (233 + 64)
    phases = short["phases"]["Sapwood"]
    assert set(phases) == {*PHASES, "other"}
    assert all(phases[name] > 0 for name in ("sample", "log-probs", "forward and backward", "step"))
    assert sum(phases.values()) == pytest.approx(short["contestants"]["Sapwood"]["median_seconds"], rel=0.5)


def test_other_work_is_no_result() -> None:
    done = {"sampled_tokens": [64], "trained_tokens": [64]}
    assert _same_work({"ours": [done], "peer": [done]}, 64) == {"sampled_tokens": 64, "trained_tokens": 64}
    for wrong in ({"sampled_tokens": [63]}, {"trained_tokens": [63]}):
        with pytest.raises(SapwoodError, match="peer sampled"):
            _same_work({"ours": [done], "peer": [{**done, **wrong}]}, 64)


def test_every_token_counts_in_the_reward() -> None:
    assert 0 <= reward_of([5, 6, 7]) < 1
    assert len({reward_of([5, 6, last]) for last in range(20)}) == 20


def test_an_earlier_result_without_a_sweep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "odd.json"
    file.write_text("[]")
    words = ["--sweep", str(file), "--model", str(write_model(tmp_path / "model", context=4096)), "--out", str(tmp_path / "out")]
    if (checkout() / ".venv-bench" / ".installed").is_file():
        assert main(["bench", "grpo", *words]) == 2
        assert "no earlier result with a sweep" in capsys.readouterr().err


def test_the_page_names_the_keys_of_a_result() -> None:
    page = (checkout() / "docs" / "performance.md").read_text().partition("## A whole step of GRPO")[2]
    for name in ("ratio_short", "ratio_long", "phases", "sampled_tokens", "trained_tokens", *PHASES):
        assert f"`{name}`" in page
    for shape in SHAPES.values():
        assert re.search(rf"{shape.prompt:,} tokens.{{0,40}}{shape.answer}", page, re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(not (checkout() / ".venv-bench" / ".installed").is_file(), reason="`sapwood bench sft` makes the peers' environment")
def test_the_real_trl_does_as_much(tmp_path: Path) -> None:
    setting, _ = candidates(8, 1, only_fp32=True, few=True)
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"workload": TUNED_ON["short"], "sweep": {"best": asdict(setting), "table": []}}))
    found = measured(tmp_path, "--lengths", "short", "--rounds", "2", "--kl", "0.04", "--sweep", str(sweep))
    short = found["lengths"]["short"]
    assert found["ratio_short"] == short["ratio"] > 0
    assert found["ratio_long"] is None
    assert short["sampled_tokens"] == short["trained_tokens"] == 16 * 64
    for phases in short["phases"].values():
        assert all(phases[name] > 0 for name in ("sample", "reward", "log-probs", "forward and backward", "step"))
    taken = short["contestants"]["TRL, tuned"]
    assert taken["setting"]["rows"] * taken["setting"]["accumulation"] == 16
    assert found["versions"]["TRL"]["trl"] == "1.16.0"
