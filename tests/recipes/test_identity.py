"""A run directory is never mixed with something else: what changed is named, and nothing in it is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sapwood
from sapwood.errors import CheckpointError, ConfigError
from tiny.folder import TEMPLATE, write_model, write_rows

KNOBS = {"dtype": "fp32", "budget": 512, "max_new_tokens": 2, "shots": [], "held_out": 24, "quiet": True}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_rows(tmp_path / "my.jsonl", 60)
    sapwood.sft(tmp_path / "my.jsonl", model=tmp_path / "model", out=tmp_path / "run", **KNOBS)
    return tmp_path


def again(place: Path) -> None:
    sapwood.sft(place / "my.jsonl", model=place / "model", out=place / "run", **KNOBS)


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_changed_rows_models_and_templates_are_named_and_nothing_is_touched(place: Path) -> None:
    before = contents(place / "run")
    again(place)  # unchanged: goes on, to the same end
    lines = (place / "my.jsonl").read_text().splitlines()

    def refused(what: str) -> None:
        before = contents(place / "run")
        with pytest.raises(CheckpointError, match=f"begun with (an)?other {what}, and"):
            again(place)
        assert contents(place / "run") == before

    (place / "my.jsonl").write_text("\n".join([*lines[:-1], lines[-1].replace("answer", "reply")]) + "\n")
    refused("rows")
    (place / "my.jsonl").write_text("\n".join(lines) + "\n")
    write_model(place / "model", template="{# second edition #}" + TEMPLATE)
    refused("template")
    write_model(place / "model", seed=1)
    refused("model")
    write_model(place / "model")
    again(place)
    after = contents(place / "run")
    for name in ("adapter/adapter_model.safetensors", "scores.jsonl", "samples.jsonl", "items.jsonl", "ledger.jsonl"):
        assert after[name] == before[name], name


def test_an_evaluation_finds_the_adapter_of_a_run_directory(place: Path) -> None:
    knobs = {"model": place / "model", "dtype": "fp32", "max_new_tokens": 2, "quiet": True}
    rows = place / "other.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": f"{n}"}) + "\n" for n in range(30)))
    result = sapwood.evaluate(rows, adapter=place / "run", out=place / "eval", **knobs)
    assert "tuned" in result.arms
    with pytest.raises(ConfigError, match="holds no adapter"):
        sapwood.evaluate(rows, adapter=place / "eval", **knobs)


def test_rows_in_memory_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="data holds a dict; give the path"):
        sapwood.sft([{"messages": []}])  # type: ignore[list-item]
