"""Run in a process of its own: plans of the default model's adapter, and what the worst-case step takes, in turn, as a line of JSON.

Arguments: an empty folder, rounds, and which clock. `processor` counts the seconds that one thread computes, whatever else the machine
does; `wall` is the clock on the wall, with all threads.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.model import LanguageModel, add_lora, load_model, trainable_parameters
from sapwood.records import Example, Row
from sapwood.train import SftConfig
from sapwood.train.measuring import estimate
from sapwood.train.optimizer import Optimizer
from sapwood.train.rehearsal import rehearse

scratch, rounds, clock = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if clock == "processor":
    torch.set_num_threads(1)
    time.perf_counter = time.thread_time
config = SftConfig(batch=6, budget=1024)
folder = resolve_model(DEFAULT_MODEL)
rng = np.random.default_rng(0)
rows = [Row(ids[:180], ids[180:], np.ones(60, np.float32)) for ids in rng.integers(5, 40_000, (12, 240))]
examples = [Example((row,)) for row in rows]
model: LanguageModel | None = None
found: dict[str, list[float]] = {name: [] for name in ("planned_bytes", "bytes", "planned_seconds", "seconds", "others")}
for _ in range(rounds):
    expected, _ = estimate(folder, config, "auto", anew=True)
    model = model or add_lora(load_model(folder), config.lora, 0)
    optimizer = Optimizer(trainable_parameters(model), config.optim)
    one = rehearse(model, optimizer, examples, [], scratch, 1024, batch=6, expected=expected)
    assert one.planned is not None
    assert expected.measured is not None
    took = (one.planned.bytes, one.step_bytes, one.planned.seconds, one.worst_seconds, expected.measured.others)
    for values, value in zip(found.values(), took, strict=True):
        values.append(value)
print(json.dumps(found))
