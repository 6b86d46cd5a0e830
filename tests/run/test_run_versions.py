"""Run directories of other versions: of the future, of none, and of version 0 as the first commits wrote them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
import safetensors.numpy
import yaml

from sapwood.cli.main import main
from sapwood.errors import CheckpointError
from sapwood.recipes.runs import facts_of, runs
from sapwood.run import MARK, SCHEMA, open_run, version_of
from tiny.folder import write_model, write_rows

FAST = [
    "--dtype",
    "fp32",
    "--budget",
    "512",
    "--max-new-tokens",
    "2",
    "--shots",
    "",
    "--held-out",
    "20",
    "--max-steps",
    "2",
    "--samples",
    "0",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows, and a run of today."""
    folder = tmp_path_factory.mktemp("versions")
    write_model(folder / "model")
    write_rows(folder / "my.jsonl", 60)
    assert main(["sft", str(folder / "my.jsonl"), "--model", str(folder / "model"), "--out", str(folder / "today"), *FAST]) == 0
    return folder


def copied(place: Path, to: Path) -> Path:
    """The run of today at another place, file by file."""
    for file in (place / "today").rglob("*"):
        if file.is_file() and file.name != ".lock":
            (to / file.relative_to(place / "today")).parent.mkdir(parents=True, exist_ok=True)
            (to / file.relative_to(place / "today")).write_bytes(file.read_bytes())
    return to


def as_version_0(run: Path) -> Path:
    """What the first commits wrote: no run.json, no identity.json, fewer knobs, scores without copies, checkpoints without a seal."""
    for name in (MARK, "identity.json"):
        (run / name).unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    kept = {
        "rows": ("held_out", "max_refused", "split_seed"),
        "evaluation": ("scorer", "max_new_tokens", "shots", "dev"),
        "train": ("epochs", "max_steps", "batch", "seed", "budget", "eval_every", "save_every", "keep", "full", "lora", "optim"),
    }
    old = {key: config[key] for key in ("data", "model", "template", "out", "dtype")}
    old |= {key: {name: config[key][name] for name in names} for key, names in kept.items()}
    old["train"]["lora"] = {name: config["train"]["lora"][name] for name in ("r", "alpha", "targets", "rslora")}
    old["train"]["optim"] = {name: config["train"]["optim"][name] for name in ("lr", "schedule", "warmup", "final")}
    old["out"] = str(run)
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    records = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    (run / "scores.jsonl").write_text("".join(json.dumps({k: v for k, v in one.items() if k != "copies"}) + "\n" for one in records))
    environment = json.loads((run / "environment.json").read_text())
    for name in ("today", "template_arguments"):
        environment.pop(name)
    (run / "environment.json").write_text(json.dumps(environment))
    for folder in (run / "checkpoints").iterdir():
        data = (folder / "state.safetensors").read_bytes()
        sums = {"state.safetensors": hashlib.sha256(data).hexdigest()}
        state = {"schema": 1, "step": int(folder.name[5:]), "budget": 512, "fingerprint": "0" * 64, "sha256": sums}
        (folder / "state.json").write_text(json.dumps(state))
    return run


def as_of_the_future(run: Path) -> Path:
    """A directory that a later Sapwood wrote: its version, and a knob that nobody knows yet."""
    (run / MARK).write_text(json.dumps({"schema": SCHEMA + 6}))
    with (run / "config.yaml").open("a") as file:
        file.write("flux_capacitor: 1.21\n")
    return run


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_new_run_says_its_version_and_one_without_is_of_version_0(tmp_path: Path) -> None:
    open_run(tmp_path / "a").close()
    assert version_of(tmp_path / "a") == SCHEMA
    assert json.loads((tmp_path / "a" / MARK).read_text())["begun"]
    before = (tmp_path / "a" / MARK).read_bytes()
    open_run(tmp_path / "a").close()
    assert (tmp_path / "a" / MARK).read_bytes() == before, "when it was begun, it was begun once"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("model: m\n")
    open_run(tmp_path / "b").close()
    assert version_of(tmp_path / "b") == 0, "an old run does not become one of today by being opened"
    for damaged in (b"", b"[]", b"{}", b'{"schema": "one"}'):
        (tmp_path / "a" / MARK).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            version_of(tmp_path / "a")


@pytest.mark.parametrize("verb", ["sft", "eval", "chat", "export", "decide", "again", "show", "delete"])
def test_a_run_of_the_future_is_named_by_every_verb_and_left_alone(
    place: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = as_of_the_future(copied(place, tmp_path / "run"))
    before = everything(run)
    words = {
        "again": ["sft", str(run / "config.yaml")],
        "show": ["runs", "show", str(run)],
        "delete": ["runs", "delete", str(run), "--yes"],
    }.get(verb, [verb, str(run)])
    assert main(words) == 1
    assert f"written by a newer Sapwood: it is a run directory of version {SCHEMA + 6}" in capsys.readouterr().err
    assert everything(run) == before
    assert "newer Sapwood" in runs(tmp_path).strangers["run"]


def test_a_run_of_version_0_can_be_read_used_and_trained_anew(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = as_version_0(copied(place, tmp_path / "run"))
    before = everything(run)
    facts = facts_of(run)
    assert (facts.schema, facts.state, facts.steps) == (0, "finished", 2)
    assert main(["runs", "show", str(run)]) == 0
    assert main(["runs", "compare", str(run), str(place / "today")]) == 0
    assert main(["eval", str(run), "--json", "eval.json"]) == 0
    assert json.loads(Path("eval.json").read_text())["arms"]["tuned"]["items"] == 20
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["chat", str(run)]) == 0
    assert main(["export", str(run), "--as", "adapter", "--to", str(tmp_path / "out"), "--prompts", "2", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    assert main(["sft", str(run)]) == 1
    said = capsys.readouterr().err
    assert "begun by an earlier Sapwood" in said
    assert f"sapwood sft {run / 'config.yaml'}" in said
    assert everything(run) == before, "what is refused stays as it was"
    assert main(["sft", str(run / "config.yaml")]) == 0
    again, first = (safetensors.numpy.load_file(one / "adapter" / "adapter_model.safetensors") for one in (tmp_path / "runs" / "my-1", run))
    assert all((again[name] == first[name]).all() for name in first), "the same settings, the same adapter"
