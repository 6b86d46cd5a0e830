"""A state that held-out rows chose is judged by others: in the run, and when it is evaluated again."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sapwood.chat import Chat
from sapwood.data.splitting import prompt_key
from sapwood.errors import ConfigError
from sapwood.recipes import Screen, TuneConfig, tune
from sapwood.recipes.assess import assess, of_run
from sapwood.recipes.decide import DecideConfig
from sapwood.recipes.prepare import DataConfig, Prepared, prepare, scan_files, set_apart
from sapwood.run import read_records
from sapwood.train import OptimConfig, SftConfig
from tiny.folder import write_model, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choosing")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 90)
    return folder


def prepared(folder: Path, **config: Any) -> tuple[Prepared, DataConfig]:
    settings = DataConfig(**config)
    rows = scan_files([str(folder / "rows.jsonl")], settings, lambda done, total, what: None)
    return prepare(rows, Chat.load(folder / "model"), settings), settings


@pytest.mark.parametrize("cluster", [None, "thing"])
def test_those_that_choose_judge_nothing_and_what_belongs_together_stays_so(folder: Path, cluster: str | None) -> None:
    all_of_them, settings = prepared(folder, held_out=40, cluster=cluster)
    apart = set_apart(all_of_them, settings)
    judging, choosing = ({example.where for example in side} for side in (apart.held_out_examples, apart.choosing_examples))
    assert not judging & choosing
    assert judging | choosing == {example.where for example in all_of_them.held_out_examples}
    assert len(choosing) == pytest.approx(len(all_of_them.held_out) / 4, abs=4)
    assert [row.where for row in apart.held_out] == [example.where for example in apart.held_out_examples]
    assert apart.watched_examples is apart.choosing_examples
    assert all_of_them.watched_examples is all_of_them.held_out_examples
    assert [row.where for row in set_apart(all_of_them, settings).held_out] == [row.where for row in apart.held_out]
    by_place = {row.where: row for row in all_of_them.held_out}
    key = (lambda row: row.meta["thing"]) if cluster else prompt_key
    assert not {key(by_place[where]) for where in judging} & {key(by_place[where]) for where in choosing}


def test_the_run_chooses_by_some_and_is_judged_by_the_others(folder: Path, tmp_path: Path) -> None:
    train = SftConfig(max_steps=6, eval_every=1, patience=2, optim=OptimConfig(lr=3e-2))
    config = TuneConfig(
        data=(str(folder / "rows.jsonl"),), model=str(folder / "model"), out=tmp_path / "run", rows=DataConfig(held_out=32), train=train
    )
    config = replace(config, evaluation=replace(config.evaluation, shots=(), max_new_tokens=8))
    screen = io.StringIO()
    result = tune(config, screen=Screen(file=screen))
    said = screen.getvalue()
    assert "8 of the 32 held-out rows choose what is kept, and the other 24 judge it." in said
    assert "had the lowest held-out loss" in said
    assert result.training.best_step is not None
    assert result.verdict is not None
    items = read_records(tmp_path / "run" / "items.jsonl")
    assert len(items) == result.verdict.difference.n == 24
    again = assess(replace(of_run(tmp_path / "run"), out=tmp_path / "again"))
    assert {record["item"] for record in read_records(again.path / "items.jsonl")} == {record["item"] for record in items}


def test_too_few_rows_to_choose_and_judge_are_refused_before_the_model_is_opened(folder: Path, tmp_path: Path) -> None:
    for held_out, count in ((6, "6 are"), (0, "0 are")):
        config = TuneConfig(
            data=(str(folder / "rows.jsonl"),),
            model=str(folder / "model"),
            out=tmp_path / "run",
            rows=DataConfig(held_out=held_out),
            train=SftConfig(keep_best=True),
        )
        with pytest.raises(ConfigError, match=rf"At least 8 are needed, and {count} held out. Raise --held-out"):
            tune(config)
        assert not (tmp_path / "run").exists()


def test_a_pilot_chooses_nothing() -> None:
    with pytest.raises(ConfigError, match="keep_best and patience have no meaning here"):
        DecideConfig(train=SftConfig(patience=1))
