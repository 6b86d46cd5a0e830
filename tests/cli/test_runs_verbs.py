"""`sapwood sweep` and `sapwood runs` on a tiny model: trained once, gone on with, listed, compared, removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sapwood.cli.main import main
from sapwood.cli.sweep_verb import gathered
from sapwood.errors import ConfigError
from sapwood.recipes import sweep as sweep_room
from sapwood.recipes.sweep import grid_of
from sapwood.run import read_records
from tiny.folder import write_model, write_rows

FAST = ["--dtype", "fp32", "--budget", "512", "--max-new-tokens", "4", "--shots", "2", "--dev", "4", "--held-out", "24"]
FAST += ["--batch", "8", "--max-steps", "2", "--samples", "0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over two rates, stopped after the first, then gone on with over a third."""
    folder = tmp_path_factory.mktemp("sweep")
    write_model(folder / "model")
    write_rows(folder / "my.jsonl", 60)
    base = ["sweep", str(folder / "my.jsonl"), "--model", str(folder / "model"), "--out", str(folder / "runs" / "s"), *FAST]
    trained: list[str] = []

    def stopping(config: Any, **named: Any) -> Any:
        if len(trained) == 1 and "again" not in trained:
            trained.append("again")
            raise KeyboardInterrupt
        trained.append(config.out.name)
        return tune(config, **named)

    tune, sweep_room.tune = sweep_room.tune, stopping  # type: ignore[attr-defined]
    try:
        assert main([*base, "--over", "lr=1e-4,1e-2"]) == 130
        assert main(["sweep", str(folder / "runs" / "s"), "--json", str(folder / "first.json")]) == 0
        assert main([*base, "--over", "lr=1e-4,1e-2,1e-3", "--json", str(folder / "second.json")]) == 0
    finally:
        sweep_room.tune = tune  # type: ignore[attr-defined]
    (folder / "trained.json").write_text(json.dumps(trained))
    return folder


def points(place: Path) -> list[Path]:
    return sorted((place / "runs" / "s" / "points").iterdir())


def test_a_finished_point_is_never_trained_again(place: Path) -> None:
    assert json.loads((place / "trained.json").read_text()) == ["lr=1e-4", "again", "lr=1e-2", "lr=1e-3"]


def test_the_table_is_sorted_and_names_its_winner(place: Path) -> None:
    first, second = (json.loads((place / f"{name}.json").read_text()) for name in ("first", "second"))
    assert [len(found["table"]) for found in (first, second)] == [2, 3]
    losses = [line["loss"] for line in second["table"]]
    assert losses == sorted(losses)
    assert second["winner"] == second["table"][0]
    assert second["winner"]["name"] == "lr=1e-2", "two steps learn more at the higher rate"
    assert second["next"][0].endswith("points/lr=1e-2")
    assert "--lr 1e-2" in second["next"][1]


def test_what_chooses_does_not_judge_and_base_arms_are_asked_once(place: Path) -> None:
    runs = points(place)
    items = [{record["item"] for record in read_records(run / "items.jsonl")} for run in runs]
    assert items[0] == items[1] == items[2]
    assert len(items[0]) == 12, "half of the 24 held-out rows"
    base = [[record for record in read_records(run / "scores.jsonl") if record["arm"] != "tuned"] for run in runs]
    seconds = [[record["seconds"] for record in sorted(side, key=lambda record: (record["arm"], record["item"]))] for side in base]
    assert seconds[0] == seconds[1] == seconds[2], "the same answers to the microsecond: handed on, not asked again"
    assert {record["arm"] for record in base[0]} == {"most common answer", "nearest training row", "plain prompt", "few-shot 2"}
    assert len({(run / "identity.json").read_text() for run in runs}) == 1, "the same rows and split"


def test_a_point_is_a_run_that_goes_on_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", str(points(place)[0])]) == 0
    assert "12 of the 24 held-out rows choose what is kept" in capsys.readouterr().err


def test_other_settings_in_the_same_sweep_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(place / "runs" / "s"), "--epochs", "3"]) == 1
    assert "train.epochs: 1.0 there, 3.0 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ((), "Nothing to sweep over"),
        (("lrr=1e-3",), "Did you mean 'lr'"),
        (("lr=",), "give values"),
        (("lr",), "give values"),
        (("lr=1e-3,1e-3",), "named twice"),
        (("lr=1e-3", "optim.lr=2e-3"), "named twice"),
        (("held_out=5,6",), "cannot be compared here"),
        (("model=a,b",), "cannot be compared here"),
        (("budget=1,2",), "all points would be the same model"),
        (("=1",), "no such knob"),
    ],
)
def test_grids_that_cannot_be(over: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("'", ".")):
        grid_of(over)


def test_values_are_read_by_the_knobs_own_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grid_of(("lora.r=8,16", "targets=all-linear,q_proj+v_proj", "lr=1e-4")) == {
        "train.lora.r": [8, 16],
        "train.lora.targets": ["all-linear", ["q_proj", "v_proj"]],
        "train.optim.lr": ["1e-4"],
    }
    assert gathered(["--over", "a=1", "--lr", "2", "--over=b=2", "--over", "c=3", "d=4"]) == [
        "--lr",
        "2",
        "--over",
        "a=1",
        "b=2",
        "c=3",
        "d=4",
    ]
    assert main(["sweep", str(tmp_path / "my.jsonl"), "--over", "lora.r=8,many", "--out", str(tmp_path / "s")]) == 2
    assert "`train.lora.r` should be int, found 'many'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_runs_lists_shows_and_compares(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["runs", "--json", "runs.json"]) == 0
    (found,) = json.loads(Path("runs.json").read_text())["runs"]
    assert (found["kind"], found["state"], found["steps"], found["planned"]) == ("sweep", "finished", 3, 3)
    assert main(["runs", "runs/s", "--json", "runs.json"]) == 0
    assert {run["state"] for run in json.loads(Path("runs.json").read_text())["runs"]} == {"finished"}
    one, other = (str(run.relative_to(place)) for run in points(place)[:2])
    assert main(["runs", "show", one, "--json", "one.json"]) == 0
    shown = json.loads(Path("one.json").read_text())
    assert shown["settings"]["rows.choosing"] == "0.5"
    assert "train.optim.b_ratio" not in shown["settings"], "a default"
    assert shown["rows"] == {"rows in": 60, "trained": 36, "held out": 24, "refused": 0}
    assert any(command.startswith("sapwood chat") for command in shown["next"])
    capsys.readouterr()
    assert main(["runs", "compare", one, other, "--out", "c.html", "--json", "c.json"]) == 0
    compared = json.loads(Path("c.json").read_text())
    assert list(compared["settings_that_differ"]) == ["train.optim.lr"]
    assert compared["pairs"][0]["shared_items"] == 12
    assert "only 12 items" in capsys.readouterr().err
    assert Path("c.html").read_text().startswith("<!doctype html>")


def test_pruning_and_deleting_ask_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "a"
    shutil.copytree(points(place)[0], run)
    assert main(["runs", "prune", "--keep", "0"]) == 2
    assert "Nothing was removed. Say --yes" in capsys.readouterr().err
    assert (run / "checkpoints" / "step-2").is_dir()
    assert main(["runs", "prune", "--keep", "0", "--yes"]) == 0
    assert not any((run / "checkpoints").iterdir())
    assert main(["runs", "delete", "runs/a"]) == 2
    assert main(["runs", "delete", "runs/a", "--yes"]) == 0
    assert not run.exists()
    assert main(["runs", "shwo"]) == 2
    assert "Did you mean 'show'" in capsys.readouterr().err
