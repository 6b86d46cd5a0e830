"""What the curves show is said when the training ends, and stands in the report."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from curve_runs import read
from sapwood.evaluate.report import write_report
from sapwood.recipes import Screen, TuneConfig, tune
from sapwood.recipes.prepare import DataConfig
from sapwood.run import open_run, read_records
from sapwood.train import OptimConfig, SftConfig
from tiny.folder import write_model, write_rows


def test_a_run_that_learns_nothing_is_told_so(tmp_path: Path) -> None:
    config = TuneConfig(
        data=(str(write_rows(tmp_path / "rows.jsonl", 60)),),
        model=str(write_model(tmp_path / "model")),
        out=tmp_path / "run",
        rows=DataConfig(held_out=20),
        train=SftConfig(max_steps=12, batch=4, optim=OptimConfig(lr=1e-6)),
    )
    screen = io.StringIO()
    tune(replace(config, evaluation=replace(config.evaluation, shots=(), max_new_tokens=6)), screen=Screen(file=screen))
    said, page = screen.getvalue(), (tmp_path / "run" / "report.html").read_text()
    assert "Stuck: the held-out loss did not move" in said
    assert "Stuck: the held-out loss did not move" in page
    assert {record["ended"] for record in read_records(tmp_path / "run" / "samples.jsonl")} == {"length"}
    assert "Format not learned: 3 of 3 sample answers at step 12 run to the limit without an end." in said


def test_the_report_shows_what_the_curves_show_and_which_state_was_chosen(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    (tmp_path / "config.yaml").write_text("model: tiny\n")
    run.append("metrics", *read("overfitting"))
    assert "Overfitting: the held-out loss was lowest at step 60" in write_report(tmp_path).read_text()
    run.append("metrics", {"kind": "chosen", "step": 240, "chosen": 60, "loss": 4.381, "last_loss": 5.742})
    page = write_report(tmp_path).read_text()
    assert "The result is the state of that step" in page
    assert "step 60 of 240" in page
    run.close()
