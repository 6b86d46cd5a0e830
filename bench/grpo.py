"""`sapwood bench grpo`: whole steps of reinforcement learning, sampling to update, against TRL's GRPOTrainer.

    short    2 prompts of 233 tokens × 8 answers of 64
    long     2 prompts of 1,024 tokens × 8 answers of 128

Contestants are processes that load the same folder, begin with the same adapter, and ask the same prompts. Each answer has exactly
as many tokens as it may, for nothing ends it: ours knows no stop token, and TRL's least length is its greatest. What they sample differs,
so tokens are compared and losses are not; `sapwood bench sft --workload group` compares those on given answers. TRL is tuned on these
too: how it trains eight answers of this length fastest. Rounds alternate, and each contestant says what its phases take.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.answers import Shape, steps_of_answers
from bench.picture import Bar, draw
from bench.process import Contestant
from bench.result import make_folder, write_result
from bench.rounds import alternate, at_least, ratio, summary
from bench.setting import ROOT, busy, commit, machine, peer_python
from bench.sft import BETA2, LEARNING_RATE, OURS, TUNED, SftBench, threads_of, tuned_for
from bench.sweep import TrlSetting, earlier, words_of
from bench.workloads import Work, write_work
from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.cli.options import Json, parse, screen_for
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, SapwoodError
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model

DESCRIPTION = "Take whole steps of GRPO with TRL and here: sample, reward, log-probabilities, update; compare the time of all and of each."
AGAINST = ["trl", "none"]
SHAPES = {"short": Shape(233, 64, 8), "long": Shape(1024, 128, 8)}
TUNED_ON = {"short": "group-short", "long": "group"}
"""Workloads of `sapwood bench sft`, by which TRL's setting is found."""
PHASES = ("sample", "reward", "log-probs", "forward and backward", "step")


@dataclass(frozen=True, kw_only=True)
class GrpoBench:
    """Steps of reinforcement learning."""

    against: str = "trl"
    """The peer: trl at its best setting, or none."""
    lengths: Literal["both", "short", "long"] = "both"
    """Prompts of 233 tokens with answers of 64, of 1,024 with 128, or both."""
    prompts: int = 2
    """Prompts a step, 8 answers each."""
    rounds: int = 2
    """Rounds of A B …; each begins with the same adapter."""
    steps: int = 1
    """Timed steps a round, after one that is not."""
    kl: float = 0.0
    """Weight of the divergence from the reference; above 0 both make a pass for it. 0 is the default of both."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the frozen weights, ours and, with fp32, the peer's as well."""
    threads: int = 0
    """Threads of every contestant; 0 leaves it to torch."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id."""
    seed: int = 0
    """Seed of the prompts, of what is sampled here, and of the adapter's start."""
    sweep: Path | None = None
    """An earlier result of `bench sft`, workload group or group-short, whose best setting of the peer is taken without a new sweep."""
    out: Path = Path("runs/bench")
    """Folder for grpo.json and grpo.svg."""

    def __post_init__(self) -> None:
        if self.against not in AGAINST:
            raise ConfigError(f"against is {self.against!r}.{did_you_mean(self.against, AGAINST)} Choose one of: {', '.join(AGAINST)}.")
        at_least(1, prompts=self.prompts, rounds=self.rounds, steps=self.steps)
        at_least(0, threads=self.threads)
        if not 0 <= self.kl < 1000:
            raise ConfigError(f"kl is {self.kl}; give 0 or a number above it.")

    @property
    def chosen(self) -> list[str]:
        """Names of the lengths to measure."""
        return list(SHAPES) if self.lengths == "both" else [self.lengths]


def run(words: list[str], json: Json) -> None:
    """Measure, show, write. Raises `SapwoodError` where a contestant fails or has done other work."""
    config = parse(GrpoBench(), "bench grpo", words, DESCRIPTION)
    screen = screen_for(json)
    make_folder(config.out)
    result = measure(config, screen)
    show(result, screen)
    path = config.out / "grpo.json"
    write_result(path, result)
    picture(path.with_suffix(".svg"), result)
    screen.say(f"Result {path}, picture {path.with_suffix('.svg')}")
    json.write(result)


def measure(config: GrpoBench, screen: Screen) -> dict[str, Any]:
    """All numbers of one result."""
    model = fetch_model(config.model, screen).resolve()
    python = peer_python(screen) if config.against == "trl" else None
    busy(screen)
    found = {name: _one(config, name, model, python, screen) for name in config.chosen}
    ratios = {f"ratio_{name}": found[name]["ratio"] if name in found else None for name in SHAPES}
    versions = {who: version for one in found.values() for who, version in one.pop("versions").items()}
    settings = {**asdict(config), "learning_rate": LEARNING_RATE, "beta2": BETA2}
    return {"workload": "grpo", **ratios, "lengths": found, "settings": settings, "versions": versions} | {
        "commit": commit(),
        "machine": machine(),
    }


def _one(config: GrpoBench, name: str, model: Path, python: Path | None, screen: Screen) -> dict[str, Any]:
    """The steps of one length."""
    shape, steps = SHAPES[name], config.steps + 1
    screen.title(f"{name}: {config.prompts} prompts of {shape.prompt:,} tokens × {shape.answers} answers of {shape.answer}")
    examples = steps_of_answers(Chat.load(model), steps, config.prompts, shape, np.random.default_rng([config.seed, len(name)]))
    by_step = tuple(tuple(examples[place * config.prompts : (place + 1) * config.prompts]) for place in range(steps))
    work = Work(by_step, name, "policy")
    sweep = _tuned(config, name, screen) if python is not None else {}
    with tempfile.TemporaryDirectory(prefix="sapwood-bench-") as made, ExitStack() as stack:
        folder = Path(made).resolve()
        rows, adapter = folder / "rows.json", folder / "adapter"
        write_work(rows, work)
        common = {"model": str(model), "rows": str(rows), "adapter": str(adapter), "kl": config.kl, "seed": config.seed}
        rate = {"learning_rate": LEARNING_RATE, "beta2": BETA2}
        ours = stack.enter_context(_ours(config))
        loaded = {OURS: dict(ours.ask("load", dtype=config.dtype, threads=config.threads, **common, **rate).reply)}
        contestants = {OURS: ours}
        if python is not None:
            setting = TrlSetting(**sweep["best"])
            setting = replace(setting, accumulation=config.prompts * shape.answers // setting.rows)
            screen.say(f"TRL, tuned: {words_of(setting)}")
            peer = contestants[TUNED] = stack.enter_context(_trl(python, setting, folder))
            request = {**asdict(setting), "rows_a_pass": setting.rows, "out": str(folder / "trl"), "objective": "reinforcement"}
            loaded[TUNED] = {**peer.ask("load", **{**request, **common, **rate}).reply, "setting": asdict(setting)}
        replies: dict[str, list[Mapping[str, Any]]] = {who: [] for who in contestants}
        asked: dict[str, Callable[[], float]] = {
            who: partial(_train, contestant, steps, config.seed, replies[who]) for who, contestant in contestants.items()
        }
        say = partial(_say, screen, config.rounds, name)
        times = alternate(asked, config.rounds, say)
        versions = {who.partition(",")[0]: dict(contestant.versions) for who, contestant in contestants.items()}
    tokens = _same_work(replies, config.steps * config.prompts * shape.answers * shape.answer)
    return {
        "ratio": ratio(times[TUNED], times[OURS]) if TUNED in times else None,
        "phases": {who: _phases(rounds, config.steps) for who, rounds in replies.items()},
        **tokens,
        "unique_tokens": work.counts()["unique_tokens"],
        "row_tokens": work.counts()["row_tokens"],
        "contestants": {who: {**summary(taken, tokens["sampled_tokens"]), **loaded[who]} for who, taken in times.items()},
        "sweep": sweep,
        "versions": versions,
    }


def _tuned(config: GrpoBench, name: str, screen: Screen) -> dict[str, Any]:
    """TRL's best setting for the update alone, from an earlier result or found now for this length."""
    if config.sweep is not None:
        return earlier(config.sweep, TUNED_ON[name], SHAPES[name].answers)
    asked = SftBench(workload=TUNED_ON[name], model=config.model, dtype=config.dtype, threads=config.threads, seed=config.seed, steps=1)
    return tuned_for(asked, screen)


def _ours(config: GrpoBench) -> Contestant:
    environment = {"PYTHONPATH": str(ROOT / "src"), **threads_of(config.threads)}
    return Contestant(OURS, [sys.executable, "-m", "bench.peers.sapwood_grpo"], folder=ROOT, environment=environment)


def _trl(python: Path, setting: TrlSetting, folder: Path) -> Contestant:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(folder / "hf")}
    return Contestant("TRL", [python, "-m", "bench.peers.trl_updates"], folder=ROOT, environment={**offline, **setting.environment()})


def _train(contestant: Contestant, steps: int, seed: int, replies: list[Mapping[str, Any]]) -> float:
    reply = contestant.ask("train", steps=steps, seed=seed).reply
    replies.append(reply)
    return float(sum(reply["seconds"]))


def _say(screen: Screen, rounds: int, name: str, number: int, who: str, seconds: float) -> None:
    screen.say(f"{name}, round {number + 1} of {rounds}, {who}: {seconds:.2f} s")


def _same_work(replies: Mapping[str, list[Mapping[str, Any]]], wanted: int) -> dict[str, int]:
    """Tokens of a round that everyone sampled and trained. Raises `SapwoodError` where one did other work than `wanted`."""
    for who, rounds in replies.items():
        for reply in rounds:
            counts = {"sampled": sum(reply["sampled_tokens"]), "trained": sum(reply["trained_tokens"])}
            if any(count != wanted for count in counts.values()):
                raise SapwoodError(
                    f"{who} sampled {counts['sampled']:,} tokens and trained {counts['trained']:,}, where {wanted:,} were asked for: other "
                    "work is no comparison, so there is no result. Please report it."
                )
    return {"sampled_tokens": wanted, "trained_tokens": wanted}


def _phases(rounds: list[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """Seconds of a step by phase, the median over rounds; what no phase claims is `other`."""
    by_round = []
    for reply in rounds:
        phases = {name: sum(step.get(name, 0.0) for step in reply["phases"]) / steps for name in PHASES}
        by_round.append({**phases, "other": sum(reply["seconds"]) / steps - sum(phases.values())})
    return {name: statistics.median(one[name] for one in by_round) for name in by_round[0]}


def show(result: dict[str, Any], screen: Screen) -> None:
    """The numbers, for people."""
    for name, one in result["lengths"].items():
        screen.title(f"Result, {name}")
        names = [*PHASES, "other"]
        screen.say(f"{'seconds of a step':<20}{'all':>8}" + "".join(f"{phase:>{len(phase) + 3}}" for phase in names))
        for who, phases in one["phases"].items():
            taken = one["contestants"][who]["median_seconds"] / result["settings"]["steps"]
            screen.say(f"{who:<20}{taken:>8.2f}" + "".join(f"{phases[phase]:>{len(phase) + 3}.2f}" for phase in names))
        if one["ratio"] is not None:
            screen.say(f"{one['ratio']:.2f} times as fast as TRL, tuned", "bold")


def picture(path: Path, result: dict[str, Any]) -> Path:
    """Sampled and trained tokens a second, as bars."""
    where, settings = result["machine"], result["settings"]
    bars = [
        Bar(f"{who}, {name}", taken["per_second"], tokens / taken["most_seconds"], tokens / taken["least_seconds"], ours=who == OURS)
        for name, one in result["lengths"].items()
        for tokens in [one["sampled_tokens"]]
        for who, taken in one["contestants"].items()
    ]
    trl = result["versions"].get("TRL")
    notes = [
        f"{settings['model']}, LoRA r=16; {settings['prompts']} prompts × 8 answers; medians of {settings['rounds']} alternating rounds",
        f"{where['processor']}, {where['usable_cores']} cores; Sapwood at {result['commit'] or 'no commit'}"
        + (f"; TRL {trl['trl']}, transformers {trl['transformers']}" if trl else ""),
    ]
    ratios = [f"{one['ratio']:.1f} ({name})" for name, one in result["lengths"].items() if one["ratio"] is not None]
    times = f": {' and '.join(ratios)} times as fast as TRL tuned" if ratios else ""
    shapes = ", ".join(f"{name}: {SHAPES[name].prompt:,}/{SHAPES[name].answer} tokens" for name in result["lengths"])
    return draw(path, f"A whole step of GRPO{times}", f"answers' tokens, sampled and trained; {shapes}", bars, "tokens/s", notes)
