"""Runs listed, laid side by side, tidied: what is ours, what is not, and what is never touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from report_runs import bare_run, full_run
from sapwood.cli.main import main
from sapwood.errors import ConfigError, DataError, StorageError
from sapwood.evaluate.compare_page import comparison_page
from sapwood.evaluate.compare_runs import compare_runs
from sapwood.recipes.runs import disk_by_part, facts_of, history_of, runs
from sapwood.recipes.tidy import old_checkpoints, remove, whole_runs
from sapwood.run import open_run, saved_steps

CONFIG = "data: [my.jsonl]\nmodel: tiny\ntrain:\n  max_steps: 60\n  keep_best: false\n"


def made(folder: Path, *, steps: tuple[int, ...] = (20, 40), config: str = CONFIG) -> Path:
    """A run that was stopped after step 40: records and checkpoints, no result."""
    run = open_run(folder)
    (folder / "config.yaml").write_text(config)
    run.append("metrics", *({"kind": "train", "step": step, "loss": 3 - step / 20, "seconds": 1.0} for step in range(1, 41)))
    run.append("metrics", *({"kind": "eval", "step": step, "loss": loss} for step, loss in ((0, 3.0), (20, 1.5), (40, 2.0))))
    run.write_json("identity", {"rows": "a" * 64})
    for step in steps:
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{step}" / "state.safetensors").write_bytes(b"x" * 1000)
    run.close()
    return folder


def finished(folder: Path) -> Path:
    made(folder)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"y" * 500)
    (folder / "verdict.json").write_text('{"schema": 1, "decision": "better", "difference": {"mean": 0.31}}')
    return folder


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_facts_of_a_stopped_and_of_a_finished_run(tmp_path: Path) -> None:
    facts = facts_of(made(tmp_path / "a"))
    assert (facts.state, facts.steps, facts.planned, facts.held_out_loss) == ("stopped", 40, 60, 2.0)
    assert (facts.model, facts.data, facts.kind, facts.schema) == ("tiny", ("my.jsonl",), "sft", 1)
    done = facts_of(finished(tmp_path / "b"))
    assert (done.state, done.verdict) == ("finished", "better, +31.0 points")
    assert done.bytes == sum(disk_by_part(tmp_path / "b").values())
    assert disk_by_part(tmp_path / "b")["adapter"] == 500


def test_a_run_that_is_written_is_running_and_two_who_look_do_not_disturb(tmp_path: Path) -> None:
    made(tmp_path / "a")
    run = open_run(tmp_path / "a")
    assert facts_of(tmp_path / "a").state == facts_of(tmp_path / "a").state == "running"
    run.close()
    assert facts_of(tmp_path / "a").state == "stopped"


def test_what_is_no_run_is_named_and_links_are_not_followed(tmp_path: Path) -> None:
    finished(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "photos").mkdir()
    bare_run(tmp_path / "runs" / "config-alone")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    (tmp_path / "runs" / "link").symlink_to(finished(tmp_path / "elsewhere"))
    found = runs(tmp_path / "runs")
    assert [run.path.name for run in found.runs] == ["a"]
    assert set(found.strangers) == {"photos", "config-alone", "broken", "link"}
    assert "damaged" in found.strangers["broken"]
    assert "not followed" in found.strangers["link"]
    with pytest.raises(ConfigError, match="no folder"):
        runs(tmp_path / "none")


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "verdict.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2", b"null", b'"text"'])
def test_damaged_files_never_end_in_a_traceback(tmp_path: Path, file: str, content: bytes) -> None:
    (finished(tmp_path / "a") / file).write_bytes(content)
    found = runs(tmp_path)
    assert len(found.runs) + len(found.strangers) == 1


def test_prune_keeps_what_a_stopped_run_needs(tmp_path: Path) -> None:
    run = made(tmp_path / "a", steps=(10, 20, 40))
    removal = old_checkpoints([run], 0)
    assert [path.name for path in removal.folders] == ["step-10", "step-20"]
    assert "--lose-resume" in removal.kept[0]
    assert removal.bytes == 2000
    remove(removal)
    assert saved_steps(run) == [40]
    remove(old_checkpoints([run], 0, lose_resume=True))
    assert saved_steps(run) == []


def test_prune_keeps_the_best_state_where_it_may_become_the_result(tmp_path: Path) -> None:
    run = made(tmp_path / "a", steps=(10, 20, 40), config=CONFIG.replace("keep_best: false", "keep_best: true"))
    assert [path.name for path in old_checkpoints([run], 1).folders] == ["step-10"], "step 20 had the lowest held-out loss"


def test_prune_of_a_finished_run_leaves_the_adapter(tmp_path: Path) -> None:
    run = finished(tmp_path / "a")
    before = everything(run)
    remove(old_checkpoints([run], 0))
    gone = before - everything(run)
    assert gone == {f"checkpoints/step-{step}{rest}" for step in (20, 40) for rest in ("", "/state.safetensors")}
    with pytest.raises(ConfigError, match="keep is -1"):
        old_checkpoints([run], -1)


def test_nothing_outside_is_removed_through_a_link(tmp_path: Path) -> None:
    run, outside = finished(tmp_path / "a"), tmp_path / "precious"
    outside.mkdir()
    (outside / "thesis.txt").write_text("years")
    (run / "checkpoints" / "step-5").symlink_to(outside)
    (run / "export").symlink_to(outside)
    remove(old_checkpoints([run], 0))
    remove(whole_runs([run]))
    assert not run.exists()
    assert (outside / "thesis.txt").read_text() == "years"
    (tmp_path / "link").symlink_to(finished(tmp_path / "b"))
    with pytest.raises(DataError, match="is a link"):
        whole_runs([tmp_path / "link"])


def test_what_is_not_ours_or_is_written_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.yaml").write_text("a: 1")
    for place in (tmp_path / "photos", tmp_path, tmp_path / "none"):
        with pytest.raises(DataError):
            whole_runs([place])
    removal = whole_runs([made(tmp_path / "a")])
    run = open_run(tmp_path / "a")
    with pytest.raises(StorageError, match="being written"):
        whole_runs([tmp_path / "a"])
    with pytest.raises(StorageError, match="being written"):
        remove(removal)
    assert "being written" in old_checkpoints([tmp_path / "a"], 0).kept[0]
    run.close()
    remove(removal)
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove anything")
def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    run = finished(tmp_path / "a")
    (run / "checkpoints").chmod(0o500)
    with pytest.raises(StorageError, match="no permission"):
        remove(old_checkpoints([run], 0))
    (run / "checkpoints").chmod(0o700)


SCORE = {"cluster": None, "answer": None, "explanation": "", "text": "", "ended": "stop", "tokens_in": 1, "tokens_out": 1, "seconds": 0.1}


def scored(folder: Path, values: dict[str, float], *, scorer: str = "exact", lr: float = 1e-3) -> Path:
    made(folder, config=CONFIG + f"  optim: {{lr: {lr}}}\n")
    run = open_run(folder)
    run.append("scores", *({"arm": "tuned", "item": item, "value": value, **SCORE} for item, value in values.items()))
    run.write_json("verdict", {"decision": "better", "scorer": scorer})
    run.close()
    return folder


def test_a_comparison_pairs_shared_items_alone(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", {f"i{n}": 0.0 for n in range(60)})
    b = scored(tmp_path / "b", {f"i{n}": 1.0 for n in range(20, 80)}, lr=5e-4)
    found = compare_runs([a, b])
    (pair,) = found.pairings
    assert (pair.shared, pair.alone, pair.decision) == (40, (20, 20), "better")
    assert pair.difference is not None
    assert (pair.difference.n, pair.difference.mean) == (40, 1.0)
    assert "20 items of a and 20 of b are not shared" in pair.line
    assert [(row.name, row.values) for row in found.settings] == [("train.optim.lr", ("0.001", "0.0005"))]
    assert found.losses == ((3.0, 1.5, 2.0), (3.0, 1.5, 2.0))


def test_disjoint_items_and_other_scorers_are_not_compared(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", {f"i{n}": 0.0 for n in range(30)})
    b = scored(tmp_path / "b", {f"j{n}": 1.0 for n in range(30)})
    c = scored(tmp_path / "c", {f"i{n}": 1.0 for n in range(30)}, scorer="set-f1")
    found = compare_runs([a, b, c])
    assert [pair.difference for pair in found.pairings] == [None, None]
    assert "no item in common" in found.pairings[0].line
    assert "judged by set-f1 and by exact" in found.pairings[1].line
    with pytest.raises(ConfigError, match="at least two"):
        compare_runs([a])
    with pytest.raises(ConfigError, match="named twice"):
        compare_runs([a, a])


def test_the_page_of_a_comparison_is_one_file_without_a_script(tmp_path: Path) -> None:
    full_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b<script>alert(1)<")
    (tmp_path / "b<script>alert(1)<" / "config.yaml").write_text("model: '<script>x</script>'\n")
    page = comparison_page(compare_runs([tmp_path / "a", tmp_path / "b<script>alert(1)<"]))
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page


def test_a_history_compares_runs_that_were_asked_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, (name, values) in enumerate(
        {
            "first": {f"q{n}": float(n % 3 == 0) for n in range(30)},
            "other": {f"x{n}": 1.0 for n in range(30)},
            "second": {f"q{n}": float(n % 3 != 1) for n in range(40)},
        }.items()
    ):
        run = scored(tmp_path / "runs" / name, values)
        (run / "run.json").write_text(f'{{"schema": 1, "begun": "2026-01-0{place + 1}T10:00:00+00:00"}}')
    entries = history_of(runs(tmp_path / "runs"))
    assert [(entry.name, entry.before) for entry in entries] == [("first", None), ("other", None), ("second", "first")]
    change = entries[-1].change
    assert change is not None
    assert (change.n, change.wins, change.losses) == (30, 10, 0), "over the questions of both, whatever lay between"
    (tmp_path / "runs" / "second" / "scores.jsonl").rename(tmp_path / "scores.jsonl")
    assert [entry.name for entry in history_of(runs(tmp_path / "runs"))] == ["first", "other"]
    (tmp_path / "scores.jsonl").rename(tmp_path / "runs" / "second" / "scores.jsonl")
    page = tmp_path / "history.html"
    assert main(["runs", str(tmp_path / "runs"), "--out", str(page)]) == 0
    html = page.read_text()
    assert "<script" not in html
    places = [html.index(f'<th scope="row">{name}<br>') for name in ("second", "other", "first")]
    assert places == sorted(places), "the newest first"
    assert "+33.3 [" in html
    assert "first, 30 items" in html
    assert str(page) in capsys.readouterr().err
