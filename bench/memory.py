"""`sapwood bench memory`: peak memory of training as a function of unique tokens, predicted by the plan and measured.

Each point is a fresh process that loads the model, adds an adapter and takes two steps of one pass each; its peak is the system's own
record (VmHWM), loading included. Two kinds of rows at each size: rows that share nothing, and eight rows of which half of the unique
tokens are one beginning, so that they hold 4.5 times as many row tokens. What is predicted comes from another fresh process, which
knows the model's folder and measures a few layers, as `sapwood plan` does. Left out on purpose: peers (`bench sft` has their peaks).
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.memory_picture import draw
from bench.process import Contestant
from bench.result import make_folder, write_result
from bench.rounds import at_least
from bench.setting import ROOT, busy, commit, machine
from sapwood.assets import DEFAULT_MODEL
from sapwood.cli.options import Json, parse, screen_for
from sapwood.errors import ConfigError
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model

KINDS = ("apart", "shared")
"""Rows that share nothing; eight rows under one beginning."""
LEAST = 64


@dataclass(frozen=True, kw_only=True)
class MemoryBench:
    """The sizes."""

    tokens: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Unique tokens of a pass."""
    checkpointing: bool = False
    """Whether layers are computed again in the backward pass."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the frozen weights."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id."""
    out: Path = Path("runs/bench")
    """Folder for memory.json and memory.svg."""

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ConfigError("tokens is empty; give at least one size, such as 1024.")
        for size in self.tokens:
            at_least(LEAST, tokens=size)


def run(words: list[str], json: Json) -> None:
    """Measure, show, write."""
    config = parse(MemoryBench(), "bench memory", words, "Peak memory of training by unique tokens: predicted by the plan, and measured.")
    screen = screen_for(json)
    make_folder(config.out)
    busy(screen)
    result = {
        "workload": "memory",
        "settings": {**asdict(config), "out": str(config.out)},
        **measure(config, screen),
        "commit": commit(),
        "machine": machine(),
    }
    path = config.out / "memory.json"
    write_result(path, result)
    draw(result, path.with_suffix(".svg"))
    screen.say(f"Predictions are off by {result['furthest']:.0%} at most. Result {path}, picture {path.with_suffix('.svg')}", "bold")
    json.write(result)


def measure(config: MemoryBench, screen: Screen) -> dict[str, Any]:
    """`points`: kind, tokens of the rows and unique ones, bytes predicted and measured. `furthest`: the largest share by which they differ.
    `bytes_a_token`: what a unique token more takes, by the line between the smallest and the largest size."""
    model = fetch_model(config.model, screen).resolve()
    asked = {"model": str(model), "dtype": config.dtype, "checkpointing": config.checkpointing}
    points = []
    for kind in KINDS:
        for size in config.tokens:
            with _process() as training:
                points.append({"kind": kind, **training.ask("train", kind=kind, size=size, **asked).reply})
    with _process() as planning:
        predicted = planning.ask("plan", tokens=[point["unique_tokens"] for point in points], **asked).reply["peaks"]
    for point, peak in zip(points, predicted, strict=True):
        point |= {"predicted_bytes": peak, "off": peak / point["peak_bytes"] - 1}
        screen.say(
            f"{point['kind']:<7}{point['unique_tokens']:>7,} unique of {point['row_tokens']:>7,} row tokens: "
            f"{peak / 2**30:.2f} GiB predicted, {point['peak_bytes'] / 2**30:.2f} measured ({point['off']:+.0%})"
        )
    apart = [point for point in points if point["kind"] == KINDS[0]]
    first, last = apart[0], apart[-1]
    span = last["unique_tokens"] - first["unique_tokens"]
    return {
        "points": points,
        "furthest": max(abs(point["off"]) for point in points),
        "bytes_a_token": (last["peak_bytes"] - first["peak_bytes"]) / span if span else None,
    }


def _process() -> Contestant:
    return Contestant(
        "Sapwood", [sys.executable, "-m", "bench.peers.sapwood_memory"], folder=ROOT, environment={"PYTHONPATH": str(ROOT / "src")}
    )
