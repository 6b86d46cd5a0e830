"""What `--together` does to the held-out loss: one epoch of real requests under many tool lists, with it and without, seed by seed.

    python -m bench.together MODEL_FOLDER --json FILE

bfcl's `live_multiple`: requests under tool lists, several under each. Tool lists that begin alike lie on one side of the split, so the
held-out loss is of lists that were not trained on. Both arms train the same examples as often, in steps of as many, with the same
adapter at the start of a seed; only which examples meet in a step differs. Out: the held-out loss of each arm and seed, its paired
difference, and how many tokens each arm computed. Left out on purpose: seconds, so it may run beside other work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench.setting import commit, machine
from sapwood.assets import pull
from sapwood.chat import Chat
from sapwood.model import LoraConfig, add_lora, load_model
from sapwood.recipes import bfcl
from sapwood.records import Conversation, Example, Message
from sapwood.run import open_run
from sapwood.train import SftConfig, sft
from sapwood.train.order import kin_of

ALIKE = 200
"""Tokens with which examples of one family begin."""
HELD_OUT = 0.2
"""Share of the families that are not trained on."""


def conversations() -> list[Conversation]:
    """Requests, each under its own functions, answered by one call."""
    found = []
    for _, row, allowed in bfcl.rows_of(pull("bfcl"), "live_multiple"):
        system = "\n".join([bfcl.SYSTEM, "", "Functions:", *(orjson.dumps(function).decode() for function in row["function"])])
        request = "\n\n".join(turn["content"] for turn in row["question"][0] if turn["role"] == "user")
        found.append(Conversation((Message("system", system), Message("user", request), Message("assistant", bfcl.answer_of(allowed)))))
    return found


def split(examples: Sequence[Example], most: int, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Examples to train on, at most so many, and those that are held out; families lie on one side."""
    kin = kin_of(examples, ALIKE)
    assert kin is not None
    families = np.random.default_rng(seed).permutation(int(kin.family_B.max()) + 1)
    apart = set(families[: int(HELD_OUT * len(families))].tolist())
    held = [one for one, family in zip(examples, kin.family_B.tolist(), strict=True) if family in apart]
    trained: list[Example] = []
    for family in families[len(apart) :]:
        trained += [examples[place] for place in np.flatnonzero(kin.family_B == family)]
        if len(trained) >= most:
            break
    return trained[:most], held[: most // 4]


def losses(folder: Path, trained: list[Example], held: list[Example], together: int, seed: int, batch: int) -> dict[str, Any]:
    """One training: held-out losses before and after, tokens of the rows and those that were computed."""
    model = add_lora(load_model(folder), LoraConfig(), seed)
    steps = -(-len(trained) // batch)
    config = SftConfig(batch=batch, seed=seed, together=together, eval_every=steps, save_every=steps)
    with tempfile.TemporaryDirectory() as run:
        done = sft(model, trained, held, config, open_run(Path(run) / "run"))
    return {
        "together": together,
        "seed": seed,
        "steps": done.steps,
        "before": done.first_eval_loss,
        "after": done.last_eval_loss,
        "row_tokens": done.row_tokens,
        "unique_tokens": done.unique_tokens,
    }


def measure(folder: Path, examples: int, seeds: int, batch: int) -> dict[str, Any]:
    """Both arms of every seed, and the differences."""
    chat = Chat.load(folder)
    every = [chat.example(conversation) for conversation in conversations()]
    trained, held = split(every, examples)
    runs = []
    for seed, together in itertools.product(range(seeds), (0, ALIKE)):
        runs.append(losses(folder, trained, held, together, seed, batch))
        print(json.dumps(runs[-1]), flush=True)
    pairs = [(runs[place], runs[place + 1]) for place in range(0, len(runs), 2)]
    differences = [with_it["after"] - without["after"] for without, with_it in pairs]
    return {
        "model": folder.name,
        "examples": len(trained),
        "held_out": len(held),
        "batch": batch,
        "runs": runs,
        "differences": differences,
        "mean_difference": statistics.mean(differences),
        "spread_of_seeds": statistics.stdev([without["after"] for without, _ in pairs]) if seeds > 1 else None,
        "saved": [1 - with_it["unique_tokens"] / without["unique_tokens"] for without, with_it in pairs],
        "commit": commit(),
        "machine": machine(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.model, given.examples, given.seeds, given.batch)
    print(json.dumps({key: found[key] for key in ("differences", "mean_difference", "spread_of_seeds", "saved")}, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
