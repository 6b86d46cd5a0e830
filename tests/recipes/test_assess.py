"""Evaluating a run later: only on what it held out, and resuming it on another day."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sapwood
from sapwood.errors import DataError
from sapwood.run import read_records
from tiny.folder import TEMPLATE, write_model, write_rows

FAST: dict[str, Any] = {"dtype": "fp32", "budget": 512, "max_new_tokens": 2, "shots": (), "held_out": 0.3, "batch": 16, "quiet": True}


def test_rows_that_a_run_was_trained_on_are_not_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With rows taken out of the file, the split moves on into rows that were trained on: a verdict would be about memory."""
    file = write_rows(tmp_path / "my.jsonl", 60)
    sapwood.sft(file, model=write_model(tmp_path / "model"), out=tmp_path / "run", **FAST)
    (tmp_path / "linked.jsonl").symlink_to(file)
    (tmp_path / "copied.jsonl").write_text("".join(sorted(file.read_text().splitlines(keepends=True))))
    more = {"model": tmp_path / "model", "adapter": tmp_path / "run", "out": tmp_path / "again", "dtype": "fp32"}
    for name in ("linked", "copied"):
        found = sapwood.evaluate(tmp_path / f"{name}.jsonl", max_new_tokens=2, **{**more, "out": tmp_path / name})
        assert "was trained on 42 of these 60 questions" in " ".join(capsys.readouterr().err.split())
        asked = {record["item"] for record in read_records(found.path / "items.jsonl")}
        assert asked == {record["item"] for record in read_records(tmp_path / "run" / "items.jsonl")}
    trained = {record["line"] for record in read_records(tmp_path / "run" / "ledger.jsonl") if record.get("status") == "trained"}
    lines = file.read_text().splitlines(keepends=True)
    (tmp_path / "seen.jsonl").write_text("".join(lines[number - 1] for number in trained))
    with pytest.raises(DataError, match=r"was trained on all 42 of these questions .* `sapwood eval .*run` asks what it held out"):
        sapwood.evaluate(tmp_path / "seen.jsonl", quiet=True, **more)
    keys = tmp_path / "run" / "trained.keys"
    kept = keys.read_bytes()
    keys.write_bytes(kept[:-1])
    with pytest.raises(DataError, match=r"trained.keys: damaged"):
        sapwood.evaluate(tmp_path / "seen.jsonl", quiet=True, **more)
    keys.unlink()  # a run of before there were keys: by their places
    with pytest.raises(DataError, match=r"42 of 60 items are not among those .* `sapwood eval .*run` asks what it held out"):
        sapwood.evaluate(tmp_path / "linked.jsonl", quiet=True, **more)
    keys.write_bytes(kept)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[::2]))
    with pytest.raises(DataError, match="may have been trained on them"):
        sapwood.evaluate(tmp_path / "run", quiet=True, held_out=0.6, out=tmp_path / "again")
    with pytest.raises(DataError, match="may have been trained on them"):
        sapwood.evaluate(tmp_path / "run", quiet=True, held_out=0, out=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_run_goes_on_another_day_where_the_template_writes_the_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row held another date than the day before, so the run was taken for one on other data."""
    model = write_model(tmp_path / "model", template="{{ strftime_now('%d %b %Y') }}" + TEMPLATE)
    file = write_rows(tmp_path / "my.jsonl", 40)
    day = SimpleNamespace(now=lambda: datetime(2025, 1, 31, 23, 59))
    monkeypatch.setattr("sapwood.chat.chat.datetime", day)
    first = sapwood.sft(file, model=model, out=tmp_path / "run", **FAST)
    adapter = (first.adapter / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(day, "now", lambda: datetime(2025, 2, 1))
    again = sapwood.sft(file, model=model, out=tmp_path / "run", **FAST)
    assert (again.adapter / "adapter_model.safetensors").read_bytes() == adapter


def test_one_row_has_no_interval_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "one.jsonl", 1)
    sapwood.evaluate(file, model=write_model(tmp_path / "model"), out=tmp_path / "run", dtype="fp32", max_new_tokens=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "bits a token (too few rows for an interval)" in said
    assert "inf" not in said.replace("interval", "")
