"""`sapwood bench growth`: how the cost of a training pass grows with rows, length, sharing and the model's width.

    rows      1 to 16 rows of one prompt: what a row more costs as a forest, and alone
    length    one row, longer and longer: what a token costs as attention grows; nothing is shared, nothing is saved
    sharing   8 rows of 512 tokens, of which nothing to seven eighths are shared: what is saved, and what tokens alone would save
    width     the same rows, models of several widths

Forward and backward with LoRA r=16, random weights (the work does not depend on them), one process, both arms alternating, the
median of each round's ratio. Out: a result, and one picture of four panels. Left out on purpose: whole steps against a peer
(`bench.sft`), and memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bench.fused_lora import random_model, seconds
from bench.growth_picture import draw
from bench.result import make_folder, write_result
from bench.rounds import alternate, at_least, ratio
from bench.setting import busy, commit, machine
from sapwood.cli.options import Json, parse, screen_for
from sapwood.forest import Forest, plant
from sapwood.model import LanguageModel, LoraConfig, add_lora
from sapwood.model.load import torch_dtype
from sapwood.recipes.screen import Screen
from sapwood.records import Row

PROMPT, OWN, TRAINED = 448, 64, 32
"""Tokens that rows share, a row's own, and those of them that are trained."""
ROWS = (1, 2, 4, 8, 16)
LENGTHS = (256, 512, 1024, 2048, 4096)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.875)
WIDTHS = (192, 384, 576, 768, 1152)
"""Of the hidden state; heads of 64, a third of them for keys and values, as in SmolLM2-135M."""
FOREST, APART = "forest", "apart"


@dataclass(frozen=True, kw_only=True)
class GrowthBench:
    """What a pass costs, along four axes."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    """Type of the frozen weights."""
    layers: int = 6
    """Layers of the random models: what a layer costs is what grows, and each layer costs the same."""
    rounds: int = 3
    """Rounds of A B at each point."""
    out: Path = Path("runs/bench")
    """Folder for growth.json and growth.svg."""

    def __post_init__(self) -> None:
        at_least(1, layers=self.layers, rounds=self.rounds)


def run(words: list[str], json: Json) -> None:
    """Measure, show, write."""
    config = parse(GrowthBench(), "bench growth", words, "How the cost of a training pass grows with rows, length, sharing and width.")
    screen = screen_for(json)
    make_folder(config.out)
    busy(screen)
    result = {
        "workload": "growth",
        "settings": {**asdict(config), "out": str(config.out), "prompt": PROMPT, "own": OWN, "trained": TRAINED},
        **measure(config, screen),
        "commit": commit(),
        "machine": machine(),
    }
    path = config.out / "growth.json"
    write_result(path, result)
    draw(result, path.with_suffix(".svg"))
    screen.say(f"Result {path}, picture {path.with_suffix('.svg')}")
    json.write(result)


def measure(config: GrowthBench, screen: Screen) -> dict[str, Any]:
    """Each axis as a list of points: `at`, tokens of both arms, seconds of both, and the two ratios (measured, by tokens)."""
    kind = torch_dtype(config.dtype)
    usual = _model(WIDTHS[2], config.layers, kind)
    found: dict[str, Any] = {}
    for axis, points in _axes().items():
        found[axis] = []
        for at, (rows, prompt, own) in points:
            model = _model(at, config.layers, kind) if axis == "width" else usual
            point = _point(model, rows, prompt, own, config.rounds)
            found[axis].append({"at": at, **point})
            screen.say(f"{axis} {at}: {point['ratio']:.2f} times as fast as apart, {point['token_ratio']:.2f} times fewer tokens")
    return found


def _axes() -> dict[str, list[tuple[Any, tuple[int, int, int]]]]:
    """Of each axis its places, with rows, tokens of the prompt and of each row's own."""
    whole = PROMPT + OWN
    return {
        "rows": [(rows, (rows, PROMPT, OWN)) for rows in ROWS],
        "length": [(length, (1, length - OWN, OWN)) for length in LENGTHS],
        "sharing": [(share, (8, int(whole * share), whole - int(whole * share))) for share in SHARES],
        "width": [(width, (8, PROMPT, OWN)) for width in WIDTHS],
    }


def _model(width: int, layers: int, kind: torch.dtype) -> LanguageModel:
    heads = width // 64
    shape = {"hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": layers}
    return add_lora(random_model(kind, **shape, num_attention_heads=heads, num_key_value_heads=heads // 3), LoraConfig(), 0)


def _point(model: LanguageModel, rows: int, prompt: int, own: int, rounds: int) -> dict[str, Any]:
    shared, apart = trees(model.vocabulary, rows, prompt, own)
    alone = rows == 1 or prompt == 0
    work = {FOREST: partial(seconds, model, shared)} | ({} if alone else {APART: partial(_each, model, apart)})
    alternate(work, 1)  # warm up
    times = alternate(work, rounds)
    times.setdefault(APART, times[FOREST])  # one row, or rows without a common beginning: both arms are the same work
    return {
        "apart_tokens": sum(forest.num_tokens for forest in apart),
        "unique_tokens": shared.num_tokens,
        "seconds": {arm: statistics.median(taken) for arm, taken in times.items()},
        "ratio": ratio(times[APART], times[FOREST]),
        "token_ratio": sum(forest.num_tokens for forest in apart) / shared.num_tokens,
    }


def trees(vocabulary: int, rows: int, prompt: int, own: int) -> tuple[Forest, list[Forest]]:
    """The same rows as one forest, and apart, in passes of up to 2,048 tokens, which is what a budget of memory would hold."""
    rng = np.random.default_rng(0)
    begin_T = rng.integers(2, vocabulary, prompt)
    trained = min(TRAINED, own - 1)
    made = [
        Row(np.concatenate([begin_T, own_T[:-trained]]), own_T[-trained:], np.ones(trained, np.float32))
        for own_T in rng.integers(2, vocabulary, (rows, own))
    ]
    return plant(made), [plant(part, min_saving=1 << 40) for part in _passes(made)]


def _passes(rows: list[Row], most: int = 2048) -> Iterator[list[Row]]:
    held: list[Row] = []
    for row in rows:
        if held and sum(one.length for one in held) + row.length > most:
            yield held
            held = []
        held.append(row)
    yield held


def _each(model: LanguageModel, passes: list[Forest]) -> float:
    return sum(seconds(model, forest) for forest in passes)
