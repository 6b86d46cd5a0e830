"""`sapwood bench WORKLOAD …`: measured comparisons, for contributors and sceptics. The workloads live in bench/ of the source tree."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import sapwood
from sapwood.cli.options import Json, take_json
from sapwood.config import did_you_mean
from sapwood.errors import AssetError, ConfigError

WORKLOADS = {
    "data": ("data", "a file of conversations made ready to train on, against TRL"),
    "sft": ("sft", "a training step: time against TRL and against the machine's limit, memory, losses"),
    "grpo": ("grpo", "a whole step of reinforcement learning, sampling to update, against TRL"),
    "sharing": ("sharing", "a training pass as a forest, against the same rows with nothing shared"),
    "growth": ("growth", "how the cost of a pass grows with rows, length, sharing and the model's width"),
    "memory": ("memory", "peak memory of training by unique tokens: predicted, and measured"),
    "start": ("start", "from the command to the first training step, and to the first word of an answer"),
    "generate": ("generate", "writing text, against transformers' `generate` and llama.cpp"),
    "parity": ("parity", "the losses of a training, step by step, against TRL"),
    "reason": ("reason", "cold-start SFT, then GRPO with a verifier, against as much time of more SFT"),
    "eval": ("choices", "multiple-choice questions with few-shot examples, against lm-eval's own backend"),
    "fused-lora": ("fused_lora", "a training pass with the fused layers, against peft's and transformers' own"),
}
"""Workload → module of bench/, and what it measures."""
SOURCE = "https://github.com/sapwood/sapwood"


def run(words: list[str]) -> None:
    """Find the workload, and hand it its options."""
    json, words = take_json(words)
    listed = "\n".join(f"  {name:<12}{what}" for name, (_, what) in WORKLOADS.items())
    if words[:1] in (["-h"], ["--help"]):
        print(f"sapwood bench WORKLOAD [options]\n\n{listed}\n\nEach takes --help, and --json [FILE.json] for machines.")
        return
    if not words or words[0].startswith("-"):
        raise ConfigError(f"Name a workload in front of the options: sapwood bench data. Workloads:\n{listed}")
    if words[0] not in WORKLOADS:
        names = list(WORKLOADS)
        raise ConfigError(f"There is no workload {words[0]!r}.{did_you_mean(words[0], names)} Workloads: {', '.join(names)}.")
    root = str(checkout())
    if root not in sys.path:
        sys.path.insert(0, root)
    measure: Callable[[list[str], Json], None] = import_module(f"bench.{WORKLOADS[words[0]][0]}").run
    measure(words[1:], json)


def checkout(package: Path = Path(sapwood.__file__)) -> Path:
    """The source tree that this package runs from. Raises `AssetError` where it was installed without one."""
    root = package.resolve().parents[2]
    if not (root / "bench" / "__init__.py").is_file():
        raise AssetError(
            f"The benchmarks, and the peers' pinned versions, are in the source tree and not in the installed package ({package.parent}). "
            f"Get them with `git clone {SOURCE}`, run `make setup` there, then `.venv/bin/sapwood bench data`."
        )
    return root
