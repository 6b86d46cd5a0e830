"""Both kinds of rows of `sapwood bench memory` hold as many unique tokens, and the plan is near to what a real process takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench.memory import KINDS, MemoryBench, measure
from bench.memory_picture import draw
from bench.peers.sapwood_memory import rows_of
from bench.result import result_of
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import ConfigError
from sapwood.forest import plant
from sapwood.recipes.screen import Screen
from tiny.folder import write_model

SVG = "{http://www.w3.org/2000/svg}"


@given(st.integers(2, 20))
def test_a_pass_holds_the_unique_tokens_that_were_asked_for(quarters: int) -> None:
    size = 256 * quarters
    forests = {kind: plant(rows_of(kind, size, 50_000)) for kind in KINDS}
    for forest in forests.values():
        assert 0.95 * size <= forest.num_tokens <= size
    assert forests["shared"].row_tokens > 4 * forests["apart"].row_tokens


def test_sizes_that_mean_nothing_are_refused() -> None:
    for tokens in ((), (8,)):
        with pytest.raises(ConfigError, match="tokens is"):
            MemoryBench(tokens=tokens)


def test_the_picture_shows_every_point(tmp_path: Path) -> None:
    points = [
        {"kind": kind, "unique_tokens": size, "row_tokens": size, "peak_bytes": size << 20, "predicted_bytes": size << 20}
        for kind in KINDS
        for size in (500, 1000)
    ]
    root = ElementTree.parse(draw({"points": points, "settings": {"model": "tiny"}}, tmp_path / "memory.svg")).getroot()
    assert len(list(root.iter(f"{SVG}circle"))) == len(points) + len(KINDS)


@pytest.mark.slow
def test_real_processes_hold_no_more_than_the_plan_expects(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", context=4096)
    config = dataclasses.replace(MemoryBench(), tokens=(512, 2048), model=str(model), dtype="fp32")
    found = measure(config, Screen(quiet=True))
    assert len(found["points"]) == 4
    for point in found["points"]:  # a tiny vocabulary never fills the chunk of logits that the plan expects
        assert point["off"] > -0.1
        assert 0.95 * point["unique_tokens"] < point["row_tokens"]
    assert found["bytes_a_token"] > 0


def test_the_committed_prediction_is_near_and_sharing_costs_no_memory() -> None:
    found = result_of("memory")
    assert found is not None
    assert found["furthest"] < 0.1
    apart, shared = ([point for point in found["points"] if point["kind"] == kind] for kind in KINDS)
    for one, other in zip(apart, shared, strict=True):
        assert other["row_tokens"] > 4 * one["row_tokens"]
        assert abs(other["peak_bytes"] / one["peak_bytes"] - 1) < 0.05
