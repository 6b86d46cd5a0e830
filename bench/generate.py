"""`sapwood bench generate`: how fast text is written, against transformers' `generate` and against llama.cpp.

Two workloads: `distinct` prompts, each answered once, greedily; and prompts under one `shared` system prompt, each sampled several times.
Contestants are processes that get the same token ids and write exactly as many new ones: A B A B …, medians of the rounds' ratios.
transformers is measured by its best of several types, attentions and batches, found first, and in decoding by its best there; llama.cpp
runs the very 4-bit file that our model comes from, with a slot for each request. Prompts are random ids: the work does not depend on them.
In fp32 (`--dtype fp32`) the greedy tokens are compared as well; bf16 rounds them apart after a while. Ratios of processor time stand beside
those of the clock: on a machine with other work they are the steadier ones, though they count the time that threads wait for each other.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.process import Contestant
from bench.result import make_folder, write_result
from bench.rounds import alternate, at_least, ratio
from bench.setting import LLAMACPP, LLAMACPP_PINS, ROOT, busy, commit, machine, peer_python
from sapwood.assets import DEFAULT_MODEL
from sapwood.assets.pulling import gguf_of
from sapwood.cli.options import Json, parse, screen_for
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, SapwoodError
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model

DESCRIPTION = "Answer the same prompts with a peer and here; compare the time of decoding, and of all."
PEERS = ["transformers", "llamacpp"]
OURS = "Sapwood"
VOCABULARY = range(1000, 40_000)
"""Ids of plain words, whatever the model."""
Reply = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GenerateBench:
    """The generation workloads."""

    against: str = "transformers"
    """The peers, with commas between: transformers, llamacpp."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id; llamacpp needs one that comes as a GGUF file."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Type of our weights."""
    requests: int = 32
    """Prompts of `distinct`, and answers of `shared`."""
    prompt: int = 241
    """Tokens of a distinct prompt."""
    system: int = 500
    """Tokens of the system prompt of `shared`."""
    question: int = 40
    """Tokens of each of its questions."""
    questions: int = 4
    """Questions of `shared`; each is sampled requests / questions times."""
    new: int = 64
    """Tokens of each answer."""
    rounds: int = 3
    """Rounds of A B …"""
    threads: int = 0
    """Threads of every contestant; 0 leaves it to torch."""
    seed: int = 0
    """Seed of the prompts."""
    out: Path = Path("runs/bench")
    """Folder for generate.json."""

    def __post_init__(self) -> None:
        for peer in self.peers:
            if peer not in PEERS:
                raise ConfigError(f"against names {peer!r}.{did_you_mean(peer, PEERS)} Choose from: {', '.join(PEERS)}.")
        at_least(1, prompt=self.prompt, system=self.system, question=self.question, questions=self.questions, rounds=self.rounds)
        at_least(2, new=self.new)
        at_least(0, threads=self.threads)
        if self.requests < 1 or self.requests % self.questions:
            raise ConfigError(f"requests is {self.requests}; give a multiple of questions, {self.questions}.")

    @property
    def peers(self) -> list[str]:
        """Names of the peers."""
        return [name.strip() for name in self.against.split(",") if name.strip()]


def run(words: list[str], json: Json) -> None:
    """Measure, show, write. Raises `SapwoodError` where a contestant fails or writes another number of tokens."""
    config = parse(GenerateBench(), "bench generate", words, DESCRIPTION)
    screen = screen_for(json)
    make_folder(config.out)
    result = measure(config, screen)
    path = config.out / "generate.json"
    write_result(path, result)
    show(result, screen)
    screen.say(f"Result {path}")
    json.write(result)


def work_of(config: GenerateBench) -> dict[str, dict[str, Any]]:
    """What each contestant is asked in each workload."""
    rng = np.random.default_rng(config.seed)

    def draw(count: int) -> list[int]:
        return rng.integers(VOCABULARY.start, VOCABULARY.stop, count).tolist()  # type: ignore[no-any-return]

    system = draw(config.system)
    return {
        "distinct": {"prompts": [draw(config.prompt) for _ in range(config.requests)], "samples": 1, "new": config.new},
        "shared": {
            "prompts": [[*system, *draw(config.question)] for _ in range(config.questions)],
            "samples": config.requests // config.questions,
            "new": config.new,
        },
    }


def measure(config: GenerateBench, screen: Screen) -> dict[str, Any]:
    """All numbers of one result."""
    model = fetch_model(config.model, screen).resolve()
    work = work_of(config)
    busy(screen)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        ours = stack.enter_context(_contestant(OURS, Path(sys.executable), "sapwood_generate", config))
        loaded = {OURS: ours.ask("load", model=str(model), dtype=config.dtype, threads=config.threads).reply}
        versions = {OURS: dict(ours.versions)}
        if "transformers" in config.peers:
            peer = stack.enter_context(_contestant("transformers", peer_python(screen), "transformers_generate", config))
            tries = _tries(peer, model, work["distinct"], config, screen)
            best, best_decoding = (min(tries, key=lambda one: float(one[what])) for what in ("seconds", "step"))
            loaded["transformers"] = _load(peer, model, best, config) | {"tries": tries, "decoding": best_decoding}
            versions["transformers"] = dict(peer.versions)
            for name in work:
                found[name] = _rounds({OURS: ours, "transformers": peer}, work[name] | {"batch": best["batch"]}, name, config, screen)
            if best_decoding is not best:
                _load(peer, model, best_decoding, config)
                request = work["distinct"] | {"batch": best_decoding["batch"]}
                found["decoding"] = _rounds({OURS: ours, "transformers": peer}, request, "decoding", config, screen)
        if "llamacpp" in config.peers:
            python = peer_python(screen, LLAMACPP, LLAMACPP_PINS, torch=None)
            peer = stack.enter_context(_contestant("llamacpp", python, "llamacpp_generate", config))
            context = config.requests * (config.prompt + config.new)
            gguf = gguf_of(config.model)
            request = {"gguf": str(gguf), "context": context, "requests": config.requests, "threads": config.threads}
            loaded["llamacpp"] = {**peer.ask("load", **request).reply, "file": gguf.name}
            versions["llamacpp"] = dict(peer.versions)
            found["llamacpp"] = _rounds({OURS: ours, "llamacpp": peer}, work["distinct"], "distinct", config, screen)
    ratios = _ratios(found)
    return {**ratios, "settings": asdict(config), "contestants": loaded, "rounds": found, "versions": versions} | {
        "commit": commit(),
        "machine": machine(),
    }


def _contestant(name: str, python: Path, script: str, config: GenerateBench) -> Contestant:
    path = f"{ROOT / 'src'}" if name == OURS else None
    threads = str(config.threads) if config.threads else None
    environment = {"PYTHONPATH": path, **({"OMP_NUM_THREADS": threads} if threads else {})}
    return Contestant(name, [python, "-m", f"bench.peers.{script}"], folder=ROOT, environment=environment)


def _load(peer: Contestant, model: Path, setting: Reply, config: GenerateBench) -> Reply:
    request = {"model": str(model), "dtype": setting["dtype"], "attention": setting["attention"], "threads": config.threads}
    return dict(peer.ask("load", **request).reply) | {"batch": setting["batch"]}


def _tries(peer: Contestant, model: Path, work: Reply, config: GenerateBench, screen: Screen) -> list[Reply]:
    """The peer's types, attentions and batches, each on all prompts with an eighth of the new tokens: seconds of all, and of a step."""
    tries: list[Reply] = []
    few = {**work, "new": max(2, config.new // 8)}
    for dtype in ("bf16", "fp32"):
        for attention in ("sdpa", "eager"):
            for batch in sorted({config.requests, max(1, config.requests // 4)}, reverse=True):
                setting = {"dtype": dtype, "attention": attention, "batch": batch}
                _load(peer, model, setting, config)
                reply = peer.ask("generate", **few, batch=batch).reply
                step = (reply["seconds"] - reply["first"]) / (few["new"] - 1)
                tries.append({**setting, "step": step, "seconds": reply["first"] + step * (config.new - 1)})
                told = f"transformers in {dtype}, {attention} attention, batches of {batch}"
                screen.say(f"{told}: about {tries[-1]['seconds']:.1f} s for all, {step:.3f} s for a token of each")
    return tries


def _rounds(contestants: dict[str, Contestant], request: Reply, name: str, config: GenerateBench, screen: Screen) -> dict[str, list[Reply]]:
    """The replies of all rounds, without their tokens; how many answers are the first contestant's to the end is said of each."""
    replies: dict[str, list[Reply]] = {who: [] for who in contestants}
    wanted = len(request["prompts"]) * request["samples"] * request["new"]

    def one(who: str, contestant: Contestant) -> float:
        reply = dict(contestant.ask("generate", **request).reply)
        if (count := sum(map(len, reply["tokens"]))) != wanted:
            raise SapwoodError(f"{who} wrote {count:,} tokens where {wanted:,} were asked for: there is nothing to compare.")
        replies[who].append(reply)
        return float(reply["seconds"])

    alternate(
        {who: partial(one, who, contestant) for who, contestant in contestants.items()},
        config.rounds,
        lambda number, who, seconds: screen.say(f"{name}, round {number + 1} of {config.rounds}, {who}: {seconds:.2f} s"),
    )
    for round_replies in zip(*replies.values(), strict=True):
        ours = round_replies[0].pop("tokens")
        for other in round_replies[1:]:
            other["same_answers"] = sum(mine == theirs for mine, theirs in zip(ours, other.pop("tokens"), strict=True))
    return replies


def _ratios(found: dict[str, Any]) -> dict[str, Any]:
    """Above 1 we are faster; `first_token` of llama.cpp is our time over its, so below 1 is better."""
    ratios: dict[str, Any] = {}
    for name in ("distinct", "shared"):
        if name in found:
            ours, theirs = found[name][OURS], found[name]["transformers"]
            ratios[f"ratio_transformers_{name}"] = ratio(_of(theirs, "seconds"), _of(ours, "seconds"))
            ratios[f"cpu_ratio_transformers_{name}"] = ratio(_of(theirs, "cpu_seconds"), _of(ours, "cpu_seconds"))
    if "distinct" in found:
        rounds = found.get("decoding", found["distinct"])
        decoding = [[one["seconds"] - one["first"] for one in rounds[who]] for who in ("transformers", OURS)]
        ratios["ratio_transformers_decode"] = ratio(*decoding)
    if "llamacpp" in found:
        ours, theirs = found["llamacpp"][OURS], found["llamacpp"]["llamacpp"]
        ratios["ratio_llamacpp"] = ratio(_of(theirs, "seconds"), _of(ours, "seconds"))
        ratios["cpu_ratio_llamacpp"] = ratio(_of(theirs, "cpu_seconds"), _of(ours, "cpu_seconds"))
        ratios["first_token_llamacpp"] = ratio(_of(ours, "soonest"), _of(theirs, "soonest"))
    return ratios


def _of(replies: list[Reply], name: str) -> list[float]:
    return [float(reply[name]) for reply in replies]


def show(result: dict[str, Any], screen: Screen) -> None:
    """The numbers, for people."""
    screen.title("Result")
    tokens = result["settings"]["requests"] * result["settings"]["new"]
    for name, contestants in result["rounds"].items():
        for who, replies in contestants.items():
            seconds = statistics.median(_of(replies, "seconds"))
            first = statistics.median(_of(replies, "first"))
            screen.say(f"{name:<10}{who:<14}{tokens / seconds:>8,.0f} new tokens/s, first tokens after {first:.2f} s of {seconds:.2f} s")
    for key, told in (
        ("ratio_transformers_decode", "times as fast as transformers in decoding"),
        ("ratio_transformers_distinct", "times as fast in all, distinct prompts"),
        ("ratio_transformers_shared", "times as fast in all, samples under one system prompt"),
        ("ratio_llamacpp", "times as fast as llama.cpp in all"),
    ):
        if key in result:
            screen.say(f"{result[key]:.2f} {told}", "bold")
