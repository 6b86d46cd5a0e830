"""`sapwood bench parity`: does a training here give the losses that TRL's SFTTrainer gives?

Both train the same model in fp32 on the same rows in the same order, with the same hyper-parameters, each in its own process and
environment: an adapter from the same initial values and all weights, on rows of one turn and of several. What is trained of a
row is what TRL's own mask says, handed over as weights; it also has the newline behind the end of a turn, which Sapwood by
itself leaves out. Compared are the loss of every step and the held-out loss after one epoch.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.conversations import conversations
from bench.process import Contestant
from bench.rounds import at_least
from bench.setting import ROOT, commit, machine, peer_python
from sapwood.assets import DEFAULT_MODEL
from sapwood.cli.options import Json, parse, screen_for
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, SapwoodError, storage
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model

DESCRIPTION = "Train the same rows with TRL's SFTTrainer and here, and compare the losses."
AGAINST = ["trl"]
SETTINGS = {
    "LoRA, single-turn": (True, 1),
    "LoRA, multi-turn": (True, 3),
    "full, single-turn": (False, 1),
    "full, multi-turn": (False, 3),
}
"""Name → (whether an adapter is trained, turns of the assistant in a row)."""
MAX_LOSS_DIFFERENCE, MAX_HELD_OUT = 1e-3, 1e-2
"""What is called equal: nats of a step's loss, and a share of the held-out loss."""


@dataclass(frozen=True, kw_only=True)
class ParityBench:
    """The comparison."""

    against: str = "trl"
    """The peer: `trl`."""
    model: str = DEFAULT_MODEL
    """A name, or a local folder."""
    steps: int = 20
    """Steps of the epoch."""
    batch: int = 4
    """Rows a step."""
    held_out: int = 16
    """Rows that are only evaluated."""
    words: int = 8
    """Words of each message, at most: short rows, for a processor computes in fp32 slowly."""
    seed: int = 0
    """Seed of the rows, the order and the adapter's initial values."""
    lr: float = 5e-4
    """Peak learning rate of the adapter."""
    full_lr: float = 2e-5
    """Peak learning rate of all weights."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch, held_out=self.held_out, words=self.words)
        if self.against not in AGAINST:
            raise ConfigError(f"against is {self.against!r}.{did_you_mean(self.against, AGAINST)} Peers: {', '.join(AGAINST)}.")


def run(words: list[str], json: Json) -> None:
    """Compare, show, write. Raises `SapwoodError` where the losses differ by more than is called equal."""
    config = parse(ParityBench(), "bench parity", words, DESCRIPTION)
    screen = screen_for(json)
    with tempfile.TemporaryDirectory(prefix="sapwood-parity-") as folder:
        result = compare(config, Path(folder), screen)
    show(result, screen)
    json.write(result)
    if not result["equal"]:
        raise SapwoodError(
            f"The losses differ: by {result['max_loss_difference']:.2g} nats in a step (equal is {MAX_LOSS_DIFFERENCE:g}), by "
            f"{result['held_out_relative_difference']:.2%} of the held-out loss (equal is {MAX_HELD_OUT:.0%}). Please report it."
        )


def compare(config: ParityBench, folder: Path, screen: Screen) -> dict[str, Any]:
    """Train every setting with both, one after the other. Raises `SapwoodError` with the words of a contestant that fails."""
    python = peer_python(screen)
    model = fetch_model(config.model, screen)
    with ExitStack() as stack:
        ours = stack.enter_context(
            Contestant(
                "Sapwood", [sys.executable, "-m", "bench.peers.sapwood_parity"], folder=ROOT, environment={"PYTHONPATH": f"{ROOT / 'src'}"}
            )
        )
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(folder / "hf")}
        peer = stack.enter_context(Contestant("TRL", [python, "-m", "bench.peers.trl_parity"], folder=ROOT, environment=offline))
        adapter = folder / "adapter"
        ours.ask("adapter", model=str(model), adapter=str(adapter), seed=config.seed)
        found = {}
        for name, (with_adapter, turns) in SETTINGS.items():
            place = folder / name.replace(", ", "-")
            asked = {
                "model": str(model),
                "adapter": str(adapter) if with_adapter else None,
                "turns": turns,
                "batch": config.batch,
                "seed": config.seed,
                "learning_rate": config.lr if with_adapter else config.full_lr,
                **_written(place, config, turns),
            }
            theirs = peer.ask("train", **asked).reply
            mine = ours.ask("train", **asked).reply
            found[name] = compared(mine, theirs)
            one = found[name]
            screen.say(
                f"{name}: {len(one['losses'])} steps differ by {one['max_loss_difference']:.1e} nats at most, the held-out loss "
                f"({one['held_out_before']:.4f} → {one['held_out_loss']:.4f}) by {one['held_out_relative_difference']:.1e} of itself"
            )
            shutil.rmtree(place)
        versions = {contestant.name: dict(contestant.versions) for contestant in (ours, peer)}
    worst = {key: max(one[key] for one in found.values()) for key in ("max_loss_difference", "held_out_relative_difference")}
    return {
        "workload": "parity",
        "against": config.against,
        **worst,
        "equal": worst["max_loss_difference"] <= MAX_LOSS_DIFFERENCE and worst["held_out_relative_difference"] <= MAX_HELD_OUT,
        "runs": found,
        "settings": asdict(config),
        "commit": commit(),
        "machine": machine(),
        "versions": versions,
    }


def compared(ours: Any, peer: Any) -> dict[str, Any]:
    """The differences of two trainings. Raises `SapwoodError` where they did not take the same steps."""
    if len(ours["losses"]) != len(peer["losses"]) or not ours["losses"]:
        raise SapwoodError(f"The contestants did not do the same work: {len(ours['losses'])} steps here, {len(peer['losses'])} there.")
    differences = [abs(a - b) for a, b in zip(ours["losses"], peer["losses"], strict=True)]
    return {
        "max_loss_difference": max(differences),
        "held_out_relative_difference": abs(ours["held_out_loss"] - peer["held_out_loss"]) / abs(peer["held_out_loss"]),
        "losses": ours["losses"],
        "losses_of_peer": peer["losses"],
        **{key: ours[key] for key in ("held_out_before", "held_out_loss")},
        **{f"{key}_of_peer": peer[key] for key in ("held_out_before", "held_out_loss")},
    }


def _written(place: Path, config: ParityBench, turns: int) -> dict[str, str]:
    """Files of rows, and places for what the contestants write."""
    place.mkdir(parents=True)
    count = config.steps * config.batch
    rows = [short(messages, config.words) for messages in _talks(count + config.held_out, turns, config.seed)]
    files = {"train": rows[:count], "held_out": rows[count:]}
    with storage(place, "write the rows to"):
        for name, side in files.items():
            lines = [{"prompt": row[:-1], "completion": row[-1:]} if turns == 1 else {"messages": row} for row in side]
            (place / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return {
        **{name: str(place / f"{name}.jsonl") for name in files},
        **{name: str(place / name) for name in ("cache", "out")},
        "rows": str(place / "tokens.json"),
    }


def _talks(count: int, turns: int, seed: int) -> list[list[dict[str, str]]]:
    """Made-up conversations with so many answers each, or fewer but two at least where several are wanted."""
    found: list[list[dict[str, str]]] = []
    for row in conversations(8 * count + 100, seed):
        answers = sum(message["role"] == "assistant" for message in row["messages"])
        if answers == 1 if turns == 1 else answers > 1:
            found.append(row["messages"])
    return found[:count]


def short(messages: list[dict[str, str]], words: int) -> list[dict[str, str]]:
    """The messages with their first words only."""
    return [{**message, "content": " ".join(message["content"].split()[:words])} for message in messages]


def show(result: dict[str, Any], screen: Screen) -> None:
    """The numbers, for people."""
    screen.title("Result")
    word = "equal" if result["equal"] else "not equal"
    screen.say(
        f"{word}: losses of all steps to {result['max_loss_difference']:.1e} nats, held-out losses to "
        f"{result['held_out_relative_difference']:.1e} of themselves",
        "bold",
    )
