"""Saved answers judged again: no model is asked, what cannot be judged has no value, and the run's own scores stay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sapwood.cli.main import main
from sapwood.evaluate import exact, item_records, items_from, run_free_arm
from sapwood.recipes.rescore import RescoreConfig, rescore
from sapwood.records import Conversation, Message
from sapwood.run import open_run, read_records
from tiny.folder import write_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = write_model(tmp_path / "model")
    items = items_from([Conversation((Message("user", f"what is {n}?"), Message("assistant", f"it is {n}"))) for n in range(6)])
    run = open_run(tmp_path / "run")
    run.append("items", *item_records(items))
    for arm, answer in (("plain", "it was {}"), ("tuned", "it is {}")):
        scores = run_free_arm(arm, items, lambda item, answer=answer: answer.format(item.reference.split()[-1]), exact())
        run.append("scores", *(score.record() for score in scores))
    run.close()
    (run.path / "config.yaml").write_text(f"model: {model}\n")
    return run.path


def test_by_several_scorers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = read_records(run / "scores.jsonl")
    Path("mine.py").write_text("def past(item, completion):\n    return None if 'it is' in completion.text else 1.0\n")
    assert main(["eval", str(run), "--rescore", "number,token-f1", "mine.py:past", "--json", "out.json"]) == 0
    rows = {(row["benchmark"], row["arm"]): row for row in json.loads(Path("out.json").read_text())["rows"]}
    assert rows["number", "plain"]["rate"] == rows["number", "tuned"]["rate"] == 1
    assert rows["token-f1", "plain"]["rate"] == pytest.approx(2 / 3)
    assert rows["token-f1", "tuned"]["change"]["mean"] == pytest.approx(1 / 3)
    assert (rows["mine.py:past", "tuned"]["rate"], rows["mine.py:past", "tuned"]["unscored"]) == (None, 6)
    assert main(["eval", str(run), "--rescore", "number"]) == 0
    records = read_records(run / "rescored.jsonl")
    assert len(records) == 3 * 12, "the same scorer again takes its own place"
    assert read_records(run / "scores.jsonl") == before


def test_items_are_counted_and_clusters_kept_together(tmp_path: Path) -> None:
    """Three answers to each of eight questions in two clusters: eight questions, and an interval as wide as two of anything allow."""
    model = write_model(tmp_path / "model")
    rows = [
        Conversation((Message("user", f"what is {n}?"), Message("assistant", f"it is {n}")), meta={"group": f"g{n % 2}"}) for n in range(8)
    ]
    items = items_from(rows, cluster="group")
    run = open_run(tmp_path / "run")
    run.append("items", *item_records(items))
    for arm, right in (("plain", ()), ("tuned", ("g0",))):
        scores = run_free_arm(arm, items, lambda item, right=right: str(item.reference) if item.cluster in right else "no", exact())
        run.append("scores", *(replace(score, sample=sample).record() for score in scores for sample in range(3)))
    run.close()
    (run.path / "config.yaml").write_text(f"model: {model}\n")
    plain, tuned = rescore(RescoreConfig(run=run.path, rescore=("exact",))).rows
    assert (tuned.scored, tuned.rate) == (8, 0.5)
    assert tuned.change is not None
    assert (tuned.change.n, tuned.change.clusters) == (8, 2)
    assert tuned.interval is not None
    assert tuned.interval.high - tuned.interval.low > 0.8
    assert plain.rate == 0


def test_what_cannot_be_rescored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, why in (
        (["eval", str(run), "--rescore", "rogue"], "Did you mean 'rouge'"),
        (["eval", str(run), "--rescore", "code-tests"], "--allow-code"),
        (["eval", "--rescore", "rouge"], "finished run directory"),
    ):
        assert main(words) == 2
        assert why in capsys.readouterr().err
    (run / "scores.jsonl").unlink()
    assert main(["eval", str(run), "--rescore", "rouge"]) == 1
    assert "no answers to score again" in capsys.readouterr().err
    assert not (run / "rescored.jsonl").exists()


def test_a_model_that_is_gone_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text(f"model: {tmp_path / 'gone'}\n")
    assert main(["eval", str(run), "--rescore", "number"]) == 0
    shown = capsys.readouterr()
    assert "scored as they stand" in " ".join((shown.out + shown.err).split())
