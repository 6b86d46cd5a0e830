"""The verbs from end to end on a tiny model: what they leave, that they go on after a stop, and what machines read."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import torch

import sapwood
from sapwood.cli.chat_verb import ChatConfig, _run_of, open_model
from sapwood.cli.main import main
from sapwood.recipes import Screen
from sapwood.run import read_records, step_records
from tiny.folder import write_model, write_rows

FAST = ["--dtype", "fp32", "--budget", "512", "--max-new-tokens", "4", "--shots", "2", "--dev", "4", "--held-out", "24", "--batch", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    write_model(folder / "model")
    write_rows(folder / "my.jsonl", 80)
    arguments = ["sft", str(folder / "my.jsonl"), "--model", str(folder / "model"), "--out", str(folder / "run"), *FAST]
    assert main([*arguments, "--json", str(folder / "result.json")]) == 0
    return folder


def test_sft_leaves_a_whole_run_directory(place: Path) -> None:
    run = place / "run"
    for name in ("config.yaml", "environment.json", "ledger.jsonl", "metrics.jsonl", "samples.jsonl", "scores.jsonl", "verdict.json"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    summary = read_records(run / "ledger.jsonl")[-1]
    assert summary["rows_in"] == 80 == summary["trained"] + summary["held_out"] + summary["refused"]
    assert summary["held_out"] == 24
    steps = [record for record in step_records(run / "metrics.jsonl") if record["kind"] == "train"]
    assert [record["step"] for record in steps] == list(range(1, 15)), "56 examples in batches of 4"
    whens = {record["when"] for record in read_records(run / "samples.jsonl")}
    assert "before" in whens
    assert "step 14" in whens


def test_every_arm_is_scored_once_on_every_item(place: Path) -> None:
    records = read_records(place / "run" / "scores.jsonl")
    arms = {record["arm"] for record in records}
    assert arms == {"most common answer", "nearest training row", "plain prompt", "few-shot 2", "tuned"}
    items = {record["item"] for record in records}
    assert len(records) == len(arms) * len(items)


def test_the_result_for_machines(place: Path) -> None:
    result = json.loads((place / "result.json").read_text())
    assert result["arms"].keys() >= {"tuned", "plain prompt"}
    assert result["interval"][0] <= result["difference"] <= result["interval"][1]
    assert result["difference"] == pytest.approx(100 * (result["tuned"] - result["best_other"]))
    assert result["row_tokens_per_second"] >= result["unique_tokens_per_second"] > 0
    assert result["decision"] in ("better", "worse", "not shown")


def test_a_finished_run_can_be_named_again_and_changes_nothing(place: Path) -> None:
    before = (place / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    scores = read_records(place / "run" / "scores.jsonl")
    assert main(["sft", str(place / "run")]) == 0
    assert (place / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert read_records(place / "run" / "scores.jsonl") == scores, "no item is asked twice"


def test_a_saved_config_runs_again_to_the_same_adapter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["sft", str(place / "run" / "config.yaml"), "--shots", "2"]) == 0
    again = safetensors.numpy.load_file(place / "runs" / "my-1" / "adapter" / "adapter_model.safetensors")
    first = safetensors.numpy.load_file(place / "run" / "adapter" / "adapter_model.safetensors")
    assert all((again[name] == first[name]).all() for name in first)


def test_another_setting_in_the_same_directory_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", str(place / "run"), "--lr", "1e-5"]) == 1
    assert "other settings (train.optim.lr: " in capsys.readouterr().err


def test_eval_of_a_run_and_from_python(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    assert main(["eval", str(place / "run"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    scored = {r["item"]: r["value"] for r in read_records(place / "run" / "scores.jsonl") if r["arm"] == "tuned"}
    assert shown["arms"]["tuned"]["rate"] == pytest.approx(sum(scored.values()) / len(scored)), (
        "the saved adapter answers as the trained one"
    )
    result: Any = sapwood.evaluate(place / "run", quiet=True)
    assert result.line == shown["line"]
    assert "plain prompt" in result._repr_html_()


def test_chat_reads_lines_and_answers(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the colour of sky\n/reset\nthe colour of grass\n/quit\n"))
    assert main(["chat", str(place / "run"), "--max-new-tokens", "4", "--json"]) == 0
    messages = json.loads(capsys.readouterr().out)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"], "what stood before /reset is forgotten"
    assert messages[0]["content"] == "the colour of grass"


def test_doctor_passes_healthy_rows_and_fails_on_broken_ones(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(place / "my.jsonl"), "--model", str(place / "model")]) == 0
    assert "Healthy" in capsys.readouterr().err
    broken = tmp_path / "broken.jsonl"
    lines = (place / "my.jsonl").read_text().splitlines()
    broken.write_text("\n".join([*lines[:30], lines[30][:40]]) + "\n")
    assert main(["doctor", str(broken), "--model", str(place / "model")]) == 1
    shown = capsys.readouterr().err
    assert "broken.jsonl:31" in shown
    assert "1 of 31 rows cannot be trained" in shown


def test_full_training_and_free_text(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": f"tell {n}", "completion": f"a long story about the number {n} and the colour of the sky over the grass"}
        for n in range(40)
    ]
    (tmp_path / "free.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result: Any = sapwood.sft(
        tmp_path / "free.jsonl", model=place / "model", out=tmp_path / "run", dtype="fp32", full=True, budget=512, lr=1e-3, quiet=True
    )
    assert result.verdict is None
    assert "bits a token" in result.line
    assert "do not prove" in result.line
    assert result.bits["held-out answers"].mean < 0, "training on such rows makes such rows likelier"
    shutil.copytree(place / "model", tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes((tmp_path / "run" / "model" / "model.safetensors").read_bytes())
    monkeypatch.setattr("sys.stdin", io.StringIO("tell 5\n"))
    assert main(["chat", str(tmp_path / "copy"), "--json", "--max-new-tokens", "2"]) == 0


def test_a_full_run_is_measured_again(place: Path, tmp_path: Path) -> None:
    arguments = ["sft", str(place / "my.jsonl"), "--model", str(place / "model"), "--out", str(tmp_path / "run"), *FAST, "--full", "True"]
    assert main([*arguments, "--max-steps", "1"]) == 0
    out = ["--out", str(tmp_path / "again"), "--json", str(tmp_path / "again.json")]
    assert main(["eval", str(tmp_path / "run"), *out]) == 0
    assert "tuned" in json.loads((tmp_path / "again.json").read_text())["arms"]


def test_an_evaluation_takes_no_scores_of_another_model(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores are found by arm and item, so those of another model in the same directory would pass for this one's."""
    write_model(tmp_path / "other", seed=1)
    flags = ["--dtype", "fp32", "--max-new-tokens", "4", "--scorer", "exact", "--out", str(tmp_path / "run")]
    assert main(["eval", str(place / "my.jsonl"), "--model", str(place / "model"), *flags]) == 0
    assert main(["eval", str(place / "my.jsonl"), "--model", str(place / "model"), *flags]) == 0, "the same goes on"
    assert main(["eval", str(place / "my.jsonl"), "--model", str(tmp_path / "other"), *flags]) == 1
    assert "choose another folder" in capsys.readouterr().err
    config = (place / "run" / "config.yaml").read_bytes()
    assert main(["eval", str(place / "run"), "--out", str(place / "run")]) == 1
    assert (place / "run" / "config.yaml").read_bytes() == config, "a run's own config is not written over"


def test_rates_of_an_evaluation_count_clusters(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n % 2} {n}", "completion": "ab"[n % 2], "owner": f"o{n % 4}"} for n in range(40)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result: Any = sapwood.evaluate(
        tmp_path / "my.jsonl", model=place / "model", out=tmp_path / "run", dtype="fp32", max_new_tokens=2, cluster="owner", quiet=True
    )
    assert "effective items" in result.arms["plain prompt"].interval.method


def test_chat_takes_the_type_it_is_given(place: Path) -> None:
    model, _ = open_model(str(place / "run"), ChatConfig(dtype="fp64"), Screen(quiet=True))
    assert model.dtype == torch.float64
    model, _ = open_model(str(place / "run"), ChatConfig(), Screen(quiet=True))
    assert model.dtype == torch.float32, "the run's own"


def test_chat_takes_an_adapter_by_itself(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was copied elsewhere says what it was trained on; the run's own stands for the run, which knows its type."""
    away = shutil.copytree(place / "run" / "adapter", tmp_path / "away")
    model, chat = open_model(str(place / "run"), ChatConfig(), Screen(quiet=True))
    alone, same = open_model(str(away), ChatConfig(dtype="fp32"), Screen(quiet=True))
    assert chat.fingerprint == same.fingerprint
    tensors = model.module.state_dict()
    assert any("lora_B" in name and tensor.any() for name, tensor in tensors.items())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in alone.module.state_dict().items())
    assert _run_of(str(place / "run" / "adapter")) == str(place / "run")
    assert _run_of(str(away)) == str(away)
    file = away / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": None}))
    assert main(["chat", str(away)]) == 1
    assert "names no base model" in capsys.readouterr().err
    assert main(["eval", str(place / "my.jsonl"), "--model", str(away)]) == 1
    assert "`sapwood eval` takes the adapter beside it, as --adapter" in capsys.readouterr().err
