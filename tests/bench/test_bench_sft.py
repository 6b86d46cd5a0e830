"""`sapwood bench sft`: refusals, our own side through the whole verb, and one comparison with the real peer."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench.sweep import candidates
from bench.workloads import WORKLOADS

from sapwood.cli.bench_verb import checkout
from sapwood.cli.main import main
from tiny.folder import write_model

KEYS = ("ratio_to_defaults", "ratio_to_tuned", "share_of_limit", "max_loss_difference", "memory_ratio")
MEMORY = {"memory", "memory_ratio", "memory_ratio_to_defaults"}
"""Keys of a result whose memory was measured."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workload", "tolls"], "Did you mean 'tools'"),
        (["--against", "tlr"], "Did you mean 'trl'"),
        (["--rounds", "0"], "whole number from 1 on"),
        (["--shared", "100"], "500 to 2,000"),
        (["--workload", "chat", "--data", "rows.jsonl"], "--workload natural"),
        (["--step", "3"], "'steps'"),
    ],
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sft", *words]) == 2
    assert said in capsys.readouterr().err


def measured(model: Path, tmp_path: Path, *words: str) -> dict[str, Any]:
    target = tmp_path / "found.json"
    asked = ["--model", str(model), "--out", str(tmp_path / "out"), "--dtype", "fp32", "--threads", "1", "--json", str(target)]
    assert main(["bench", "sft", *asked, *words]) == 0
    found: dict[str, Any] = json.loads(target.read_text())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run without a peer left: `found.json`, and the folder `out`."""
    folder = tmp_path_factory.mktemp("alone")
    model = write_model(folder / "model", context=4096)
    words = ("--workload", "chat", "--against", "none", "--rounds", "2", "--steps", "2", "--rows", "2", "--memory", "False", "--profile")
    measured(model, folder, *words)
    return folder


def test_ours_alone_through_the_verb(alone: Path) -> None:
    out = alone / "out"
    found = json.loads((alone / "found.json").read_text())
    assert found == json.loads((out / "sft-chat.json").read_text())
    ElementTree.parse(out / "sft-chat.svg")
    assert sorted(path.name for path in out.iterdir()) == ["sft-chat.json", "sft-chat.svg"], "the rows and the adapter are gone"
    assert [found[key] for key in ("ratio_to_defaults", "ratio_to_tuned", "max_loss_difference")] == [None, None, None]
    ours, limit = found["contestants"]["Sapwood"], found["limit"]
    assert len(ours["seconds"]) == len(limit["seconds"]) == 2
    shares = [a / b for a, b in zip(limit["seconds"], ours["seconds"], strict=True)]
    assert found["share_of_limit"] == pytest.approx(sum(shares) / 2)
    assert sum(limit["parts"].values()) == pytest.approx(limit["seconds"][-1])
    assert found["computed_tokens"] >= found["tokens"]["unique_tokens"] == sum(size["tokens"] for size in limit["sizes"])
    assert len(found["losses"]["Sapwood"]) == 3, "the step that warms up has a loss, and no time"
    assert found["settings"]["rows"] == found["tokens"]["conversations"] / 2 == 2
    assert ours["dtype"] == "float32"
    assert sum(line["share"] for line in found["profile"]) <= 1.0001


@pytest.mark.parametrize("workload", ["pairs", "group-short"])
def test_updates_of_ours_alone(workload: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", context=4096)
    found = measured(model, tmp_path, "--workload", workload, "--against", "none", "--rounds", "2", "--steps", "1", "--memory", "False")
    limit, losses = found["limit"], found["losses"]["Sapwood"]
    assert limit["parts"]["reference"] > 0, "the reference's pass is asked for, and counted"
    assert found["computed_tokens"] >= found["tokens"]["unique_tokens"]
    assert found["max_norm_difference"] is None
    expected = math.log(2) if workload == "pairs" else 0.0  # where nothing has moved yet
    assert losses[0] == pytest.approx(expected, abs=1e-4)
    assert losses[1] != losses[0]


def test_the_page_names_the_workloads_and_the_keys_of_a_result(alone: Path) -> None:
    page = (checkout() / "docs" / "performance.md").read_text().partition("## A training step against TRL")[2]
    assert all(f"| `{workload}` |" in page for workload in WORKLOADS)
    table = page.partition("**The keys of the result.**")[2].strip().partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))))
    found = set(json.loads((alone / "found.json").read_text()))
    beside = {"max_norm_difference", "in_fp32", "max_relative_loss_difference_to_fp32"}
    assert named == (found | MEMORY | beside) - {"workload", "profile"}


@pytest.mark.slow
@pytest.mark.skipif(not (checkout() / ".venv-bench" / ".installed").is_file(), reason="`sapwood bench sft` makes the peers' environment")
@pytest.mark.parametrize("workload", ["chat", "multiturn", "multiturn-reasoning"])
def test_the_real_trl_takes_the_same_steps(workload: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", context=4096)
    found = measured(model, tmp_path, "--workload", workload, "--rounds", "2", "--steps", "2", "--rows", "2")
    assert found["max_loss_difference"] < 1e-4
    assert all(found[key] > 0 for key in KEYS)
    assert set(found) >= MEMORY
    assert {"Sapwood", "TRL, tuned", "TRL, its defaults"} == set(found["contestants"]) == set(found["memory"])
    fastest = min((line for line in found["sweep"]["table"] if line["seconds"]), key=lambda line: line["seconds"])
    assert found["sweep"]["best"].items() <= fastest.items()
    assert found["versions"]["TRL"]["trl"] == "1.16.0"
    assert found["contestants"]["TRL, tuned"]["adapters"] == ["float32"]
    losses = found["losses"]["TRL, tuned"]
    assert len(set(losses)) == len(losses) == 3


@pytest.mark.slow
@pytest.mark.skipif(not (checkout() / ".venv-bench" / ".installed").is_file(), reason="`sapwood bench sft` makes the peers' environment")
@pytest.mark.parametrize("workload", ["pairs", "group-short"])
def test_the_real_trl_takes_the_same_updates(workload: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", context=4096)
    setting, _ = candidates(8, 1, only_fp32=True, few=True)
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"workload": workload, "sweep": {"best": asdict(setting), "table": []}}))
    words = ("--workload", workload, "--against", "tuned", "--sweep", str(sweep), "--rounds", "2", "--steps", "2", "--memory", "False")
    found = measured(model, tmp_path, *words)
    assert found["max_loss_difference"] < 1e-4
    assert found["max_norm_difference"] < 1e-3
    assert found["ratio_to_tuned"] > 0
    assert found["contestants"]["TRL, tuned"]["adapters"] == ["float32"]
    losses = found["losses"]["TRL, tuned"]
    assert len(set(losses)) == len(losses) == 3


@pytest.mark.slow
@pytest.mark.skipif(not (checkout() / ".venv-bench" / ".installed").is_file(), reason="`sapwood bench sft` makes the peers' environment")
def test_pairs_that_round_are_compared_in_fp32_first(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", context=4096)
    words = ("--workload", "pairs", "--against", "tuned", "--dtype", "bf16", "--rounds", "1", "--steps", "1", "--rows", "2")
    found = measured(model, tmp_path, *words, "--memory", "False")
    assert found["in_fp32"]["max_loss_difference"] < 1e-3
    assert found["in_fp32"]["max_norm_difference"] < 1e-3
    assert found["max_relative_loss_difference_to_fp32"] < 0.02
    assert found["contestants"]["Sapwood"]["dtype"] == "bfloat16"
