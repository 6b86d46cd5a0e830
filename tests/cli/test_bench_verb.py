"""`sapwood bench`: what it says where it cannot measure, and one small measurement of our own side through the whole verb."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sapwood.cli.bench_verb import WORKLOADS, checkout
from sapwood.cli.main import main
from sapwood.errors import AssetError
from tiny.folder import write_model


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name a workload"),
        (["--rows", "5"], "Name a workload"),
        (["dta"], "Did you mean 'data'?"),
        (["data", "--agaist", "trl"], "Did you mean 'against'?"),
        (["data", "--against", "tlr"], "Did you mean"),
        (["data", "--rows", "0"], "whole number"),
        (["sharing", "--rounds", "0"], "whole number"),
        (["fused-lora", "--tokens", "1"], "whole number from 2 on"),
        (["sharing", "--row", "5"], "Did you mean 'rows' or 'own'?"),
        (["fused-lora", "--thread", "5"], "Did you mean 'threads'?"),
    ],
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "taken").touch()
    words = ["--against", "none", "--model", str(tmp_path / "model"), "--out"]
    assert main(["bench", "data", *words, str(tmp_path / "taken")]) == 1
    assert "a file has that name" in capsys.readouterr().err
    assert main(["bench", "data", *words, str(tmp_path / "out"), "--rows", "1000000000000"]) == 1
    assert "fewer --rows" in capsys.readouterr().err


def test_help_names_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in WORKLOADS)


def test_an_installed_package_says_where_the_benchmarks_are(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "sapwood" / "__init__.py"
    with pytest.raises(AssetError, match=r"git clone https://.*make setup"):
        checkout(package)
    assert (checkout() / "bench" / "requirements.txt").is_file()


def test_ours_alone_through_the_verb(tmp_path: Path) -> None:
    write_model(tmp_path / "model", context=4096)
    out = tmp_path / "out"
    words = ["data", "--against", "none", "--rows", "40", "--rounds", "2", "--memory", "False", "--model", str(tmp_path / "model")]
    assert main(["bench", *words, "--out", str(out), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads((out / "data.json").read_text())
    assert found["ratio"] is None, "there is no ratio without a peer"
    assert found["settings"]["rows"] == found["file"]["rows"] == 40
    assert len(found["preparation"]["Sapwood"]["seconds"]) == 2
    assert found["validation_rows_per_second"] > 0
    assert found["second_start_seconds"] > 0
    assert found["versions"]["Sapwood"]["tokenizers"]
    ElementTree.parse(out / "data.svg")
    assert sorted(path.name for path in out.iterdir()) == ["data.json", "data.svg"], "the file and the caches are gone"


@pytest.mark.slow
@pytest.mark.skipif(not (checkout() / ".venv-bench" / ".installed").is_file(), reason="`sapwood bench data` makes the peers' environment")
def test_against_the_real_trl_it_is_the_same_work(tmp_path: Path) -> None:
    write_model(tmp_path / "model", context=8192)
    words = [
        "data",
        "--rows",
        "300",
        "--rounds",
        "1",
        "--memory",
        "False",
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["bench", *words, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["same_work"]["alike"] == found["same_work"]["rows"] == 300
    assert found["versions"]["TRL"]["trl"] == "1.16.0"
    seconds = {name: taken["median_seconds"] for name, taken in found["preparation"].items()}
    ours = seconds.pop("Sapwood")
    assert found["ratio"] == pytest.approx(min(seconds.values()) / ours)
    assert found["second_start"]["TRL"]["seconds"] < min(seconds.values()), "its cache is in use, too"
