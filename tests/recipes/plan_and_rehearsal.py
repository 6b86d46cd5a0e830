"""Run in a process of its own: the plan of the default model's adapter, and what the worst-case step takes, as one line of JSON."""

import json
import sys
from pathlib import Path

import numpy as np

from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.model import add_lora, load_model, trainable_parameters
from sapwood.records import Example, Row
from sapwood.train import SftConfig
from sapwood.train.measuring import estimate
from sapwood.train.optimizer import Optimizer
from sapwood.train.rehearsal import rehearse

config = SftConfig(batch=6, budget=1024)
folder = resolve_model(DEFAULT_MODEL)
rng = np.random.default_rng(0)
rows = [Row(ids[:180], ids[180:], np.ones(60, np.float32)) for ids in rng.integers(5, 40_000, (12, 240))]
expected, _ = estimate(folder, config, "auto", anew=True)
model = add_lora(load_model(folder), config.lora, 0)
optimizer = Optimizer(trainable_parameters(model), config.optim)
found = rehearse(model, optimizer, [Example((row,)) for row in rows], [], Path(sys.argv[1]), 1024, batch=6, expected=expected)
assert found.planned is not None
print(
    json.dumps(
        {
            "planned_bytes": found.planned.bytes,
            "bytes": found.step_bytes,
            "planned_seconds": found.planned.seconds,
            "seconds": found.worst_seconds,
        }
    )
)
