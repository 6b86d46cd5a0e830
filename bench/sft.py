"""`sapwood bench sft`: how fast and in how much memory a training step is, against TRL and against the machine's limit.

Steps are of imitation (SFT), of preference (DPO) or of policy training (GRPO on given answers): `bench.workloads`.

Contestants are processes that load the same model folder, begin each round with the same adapter, and train the same rows in the
same steps with the same mask: A B A B …, medians, ratios of what ran next to each other. The losses of all steps are
compared: where they differ there is no result, only an error. Between them the limit is measured (`bench.limit`). Peak memory
comes from processes of its own, in which nothing is timed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

from bench.losses import ROUNDED_NORM, Losses, compare_losses, compare_norms, compare_rounded
from bench.picture import Bar, draw
from bench.process import Answer, Contestant
from bench.random_model import model_folder
from bench.result import make_folder, write_result
from bench.rounds import Times, alternate, at_least, ratio, summary
from bench.setting import ROOT, busy, commit, machine, peers_for
from bench.sweep import FINALISTS, TrlSetting, candidates, candidates_on_a_gpu, default_setting, earlier, search
from bench.workloads import ROWS, USUAL_ROWS, WORKLOADS, Work, work_of, write_work
from sapwood.assets import DEFAULT_MODEL
from sapwood.cli.options import Json, parse, screen_for
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.model import device_for
from sapwood.recipes.screen import Screen

DESCRIPTION = "Train the same rows with a peer and here; compare time, memory, losses, and the time that matrix products alone take."
AGAINST = ["trl", "tuned", "none"]
OURS, TUNED, BY_DEFAULT, LIMIT = "Sapwood", "TRL, tuned", "TRL, its defaults", "limit"
LEARNING_RATE, BETA2 = 2e-4, 0.999
"""Of all contestants; the rate is constant, and another one for some workloads."""
RATES = {"tools": 2e-5, "pairs": 1e-5}
"""Of workloads whose second loss hangs on rounding at that rate: Adam's first step is as long for a gradient that is only rounding as for
any other, and `tools` trains few tokens behind long prompts (second loss at 2e-4: 1.401 with TRL in bf16, 1.277 here, 1.272 in fp32). The
work is the same at any rate. TRL's own rate for preferences is a tenth of this one."""
KL = 0.04
"""Weight of the divergence from the reference, of policy training."""
A_STEP_AT_LEAST = {"imitation": 0.0, "preference": 0.0, "policy": 1.0}
"""Of which loss a share is taken where that is smaller: `compare_losses`."""


@dataclass(frozen=True, kw_only=True)
class SftBench:
    """The training workloads."""

    workload: str = "tools"
    """What is trained: tools, chat, multiturn, multiturn-reasoning, long or natural; pairs (DPO); group or group-short (GRPO)."""
    against: str = "trl"
    """The peer: trl (its defaults, and tuned), tuned (that one alone), or none."""
    rounds: int = 3
    """Rounds of A B …; each begins with the same adapter."""
    steps: int = 3
    """Timed steps a round, after one that is not."""
    rows: int = 0
    """Conversations, pairs or groups a step; 0 takes 8, or 2 for `long` and 1 for groups."""
    shared: int = 1000
    """Tokens of the tool list of `tools`, 500 to 2,000."""
    data: tuple[str, ...] = ()
    """Files of `natural`; bfcl where none is named."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where everyone computes."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the frozen weights, ours and, with fp32, the peer's as well."""
    threads: int = 0
    """Threads of every contestant; 0 leaves it to torch, and lets the peer's sweep try fewer."""
    budget: int = 0
    """Unique tokens of our micro-batches; 0 takes what the rehearsal chooses."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id; random:qwen2.5-0.5b or random:qwen2.5-1.5b are random weights, which need no hub."""
    seed: int = 0
    """Seed of the rows and of the adapter's start."""
    sweep: Path | None = None
    """An earlier result of the same workload (or of a group of another length), whose best setting of the peer is taken as it is."""
    memory: bool = True
    """Whether to measure peak memory, too."""
    profile: bool = False
    """Whether to say where the time of one of our steps goes: torch's operations, by their own time."""
    out: Path = Path("runs/bench")
    """Folder for sft-WORKLOAD.json and sft-WORKLOAD.svg."""

    def __post_init__(self) -> None:
        for name, value, allowed in (("workload", self.workload, list(WORKLOADS)), ("against", self.against, AGAINST)):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}.{did_you_mean(value, allowed)} Choose one of: {', '.join(allowed)}.")
        at_least(1, rounds=self.rounds, steps=self.steps)
        at_least(0, rows=self.rows, threads=self.threads, budget=self.budget)
        if not 500 <= self.shared <= 2000:
            raise ConfigError(f"shared is {self.shared}; give 500 to 2,000 tokens.")
        if self.data and self.workload != "natural":
            raise ConfigError(f"data names files, but workload {self.workload} makes its own rows. Give --workload natural with it.")

    @property
    def learning_rate(self) -> float:
        """Constant, of all contestants."""
        return RATES.get(self.workload, LEARNING_RATE)

    @property
    def conversations(self) -> int:
        """Conversations a step."""
        return self.rows or ROWS.get(self.workload, USUAL_ROWS)


def run(words: list[str], json: Json) -> None:
    """Measure, show, write. Raises `SapwoodError` where a contestant fails or has done other work."""
    config = parse(SftBench(), "bench sft", words, DESCRIPTION)
    device_for(config.device)  # says at once what is missing
    screen = screen_for(json)
    make_folder(config.out)
    result = measure(config, screen)
    show(result, screen)
    path = config.out / f"sft-{config.workload}.json"
    write_result(path, result)
    picture(path.with_suffix(".svg"), result)
    screen.say(f"Result {path}, picture {path.with_suffix('.svg')}")
    json.write(result)


def tuned_for(config: SftBench, screen: Screen) -> dict[str, Any]:
    """The sweep alone: the peer's best setting on a workload, and the table of all tries."""
    model = model_folder(config.model, screen)
    with tempfile.TemporaryDirectory(prefix="sapwood-bench-") as folder:
        return _Bench(config, screen, Path(folder).resolve(), model, peers_for(config.device, screen), _work(config, model, screen)).tuned()


def _work(config: SftBench, model: Path, screen: Screen) -> Work:
    return work_of(
        config.workload,
        model,
        steps=config.steps + 1,
        rows=config.conversations,
        shared=config.shared,
        seed=config.seed,
        data=config.data,
        screen=screen,
    )


def measure(config: SftBench, screen: Screen) -> dict[str, Any]:
    """All numbers of one result."""
    model = model_folder(config.model, screen)
    python = peers_for(config.device, screen) if config.against != "none" else None
    work = _work(config, model, screen)
    tokens = work.counts()
    screen.title(f"{config.workload}: {work.told}")
    screen.say(
        f"{tokens['steps']} steps of {config.conversations} conversations: {tokens['row_tokens']:,} row tokens, "
        f"{tokens['peer_tokens']:,} as a peer trains them, {tokens['unique_tokens']:,} unique "
        f"({tokens['saved_share']:.0%} saved), {tokens['trained_tokens']:,} trained"
    )
    busy(screen)
    with tempfile.TemporaryDirectory(prefix="sapwood-bench-") as folder:
        bench = _Bench(config, screen, Path(folder).resolve(), model, python, work)
        found = bench.speed()
        if config.memory:
            found |= bench.memory()
    settings = {**asdict(config), "rows": config.conversations, "learning_rate": config.learning_rate, "beta2": BETA2}
    return {
        "workload": config.workload,
        "settings": settings,
        "tokens": tokens,
        **found,
        "commit": commit(),
        "machine": machine(config.device),
    }


class _Bench:
    """One measurement: its folder, its rows, its contestants."""

    def __init__(self, config: SftBench, screen: Screen, folder: Path, model: Path, python: Path | None, work: Work) -> None:
        self.config, self.screen, self.folder, self.model, self.python = config, screen, folder, model, python
        self.objective = work.objective
        self.tokens = work.counts()
        self.rows, self.adapter = folder / "rows.json", folder / "adapter"
        self.peer_rows = work.peer_rows_a_step() if python is not None else 0
        self.replies: dict[str, list[Mapping[str, Any]]] = {}
        self.sweep: dict[str, Any] = {}
        self.in_fp32: dict[str, Any] = {}
        write_work(self.rows, work)

    def speed(self) -> dict[str, Any]:
        """A B A B …, the losses compared, the limit beside them."""
        with ExitStack() as stack:
            ours = stack.enter_context(self._ours())
            loaded = {OURS: self._load_ours(ours, adapter=True).reply}
            self.screen.say(f"{OURS}: {loaded[OURS]['dtype']}, {loaded[OURS]['threads']} threads, {loaded[OURS]['budget']:,} tokens a pass")
            work: dict[str, Callable[[], float]] = {OURS: partial(self._train, OURS, ours)}
            versions = {OURS: dict(ours.versions)}
            if self.objective == "preference" and self.python is not None and loaded[OURS]["dtype"] != "float32":
                self._agree_in_fp32()
            work[LIMIT] = partial(self._limit, ours)  # next to the steps that it is compared with
            self._find_tuned(ours, loaded[OURS]["dtype"])
            for name, setting in self._peers().items():
                peer = stack.enter_context(self._trl(setting))
                loaded[name] = self._load_trl(peer, setting).reply
                versions["TRL"] = dict(peer.versions)
                work[name] = partial(self._train, name, peer)
            times = alternate(work, self.config.rounds, self._say)
            profile = ours.ask("profile").reply["operations"] if self.config.profile else None
        return self._speed_result(times, loaded, versions) | ({"profile": profile} if profile else {})

    def tuned(self) -> dict[str, Any]:
        """The peer's sweep, without a comparison."""
        with self._ours() as ours:
            self._find_tuned(ours, self._load_ours(ours, adapter=True).reply["dtype"])
        return self.sweep

    def _speed_result(self, times: Times, loaded: dict[str, Any], versions: dict[str, Any]) -> dict[str, Any]:
        limit = times.pop(LIMIT)
        fp32 = {name: reply["dtype"] == "float32" for name, reply in loaded.items()}
        losses = {name: [reply["losses"] for reply in replies] for name, replies in self.replies.items() if name != LIMIT}
        exact = {name for name in losses if fp32[OURS] and fp32[name]}
        alike = self._compare(losses, exact)
        if self.objective != "imitation":
            norms = {name: [reply["norms"] for reply in replies] for name, replies in self.replies.items() if name != LIMIT}
            alike["max_norm_difference"] = compare_norms(norms, OURS, exact, inf if self.in_fp32 else ROUNDED_NORM)
        last = self.replies[LIMIT][-1]
        tokens = self.tokens
        return {
            "ratio_to_tuned": ratio(times[TUNED], times[OURS]) if TUNED in times else None,
            "ratio_to_defaults": ratio(times[BY_DEFAULT], times[OURS]) if BY_DEFAULT in times else None,
            "share_of_limit": ratio(limit, times[OURS]),
            **alike,
            "row_tokens_per_second": tokens["row_tokens"] / statistics.median(times[OURS]),
            "unique_tokens_per_second": tokens["unique_tokens"] / statistics.median(times[OURS]),
            "contestants": {name: {**summary(taken, tokens["row_tokens"]), **loaded[name]} for name, taken in times.items()},
            "limit": {
                **summary(limit, tokens["row_tokens"]),
                "parts": _parts(last["seconds"]),
                "flops": sum(last["flops"]),
                "sizes": last["sizes"],
            },
            "computed_tokens": sum(self.replies[OURS][-1]["computed_tokens"]),
            "losses": {name: rounds[0] for name, rounds in losses.items()},
            "sweep": self.sweep,
            "versions": versions,
        }

    def _agree_in_fp32(self) -> None:
        """One round of ours and of the peer's, all in fp32: their losses and the norms of their gradients must be equal there."""
        self.screen.say("The same steps in fp32 first, where rounding does not hide whether the work is the same:")
        with self._ours() as ours:
            self._load_ours(ours, adapter=True, dtype="fp32")
            replies = {OURS: ours.ask("train", steps=self.config.steps + 1).reply}
        start, _ = candidates(self.peer_rows, self.config.threads, only_fp32=True, few=True)
        with self._trl(start) as peer:
            self._load_trl(peer, start)
            replies[peer.name] = peer.ask("train", steps=self.config.steps + 1).reply
        losses, norms = ({name: [reply[what]] for name, reply in replies.items()} for what in ("losses", "norms"))
        exact = set(losses) - {OURS}
        self.in_fp32 = {
            "losses": {name: rounds[0] for name, rounds in losses.items()},
            **compare_losses(losses, OURS, exact),
            "max_norm_difference": compare_norms(norms, OURS, exact),
        }
        self.screen.say(
            f"losses within {self.in_fp32['max_loss_difference']:.1e} nats of TRL's, the gradient's norm within "
            f"{self.in_fp32['max_norm_difference']:.2%}"
        )

    def _compare(self, losses: Losses, exact: set[str]) -> dict[str, Any]:
        """Ours to the peers'; where all were compared in fp32 before, ours to those, and the peers' difference is only told."""
        least = A_STEP_AT_LEAST[self.objective]
        if not self.in_fp32:
            return compare_losses(losses, OURS, exact, least)
        found = compare_rounded(losses, OURS, self.in_fp32["losses"][OURS], exact, least)
        return {**found, "in_fp32": self.in_fp32}

    def memory(self) -> dict[str, Any]:
        """Peak resident memory of a fresh process each, from its start to the end of its steps; on a GPU, of what torch held there."""
        peaks = {OURS: self._peak(self._ours(), partial(self._load_ours, watch=True))}
        for name, setting in self._peers().items():
            peaks[name] = self._peak(self._trl(setting), partial(self._load_trl, setting=setting, watch=True))
        for name, peak in peaks.items():
            self.screen.say(f"peak memory of {name}: {peak['peak_bytes'] / 1e6:,.0f} MB")
        ours = peaks[OURS]["peak_bytes"]
        return {
            "memory_ratio": ours / peaks[TUNED]["peak_bytes"] if TUNED in peaks else None,
            "memory_ratio_to_defaults": ours / peaks[BY_DEFAULT]["peak_bytes"] if BY_DEFAULT in peaks else None,
            "memory": peaks,
        }

    def _peak(self, contestant: Contestant, load: Callable[[Contestant], Answer]) -> dict[str, int]:
        with contestant:
            idle = contestant.resident_bytes()
            loading = load(contestant).peak_bytes
            trained = contestant.ask("train", watch=True, steps=min(2, self.config.steps + 1))
        if self.config.device == "cuda":
            return {"peak_bytes": trained.reply["gpu_bytes"], "resident_bytes": max(loading, trained.peak_bytes)}
        training = trained.peak_bytes
        return {"peak_bytes": max(loading, training), "idle_bytes": idle, "loading_bytes": loading, "training_bytes": training}

    def _find_tuned(self, ours: Contestant, our_dtype: str) -> None:
        """What tuned means on this workload; every try must have our losses."""
        if self.python is None:
            return
        if self.config.sweep is not None:
            self.sweep = earlier(self.config.sweep, self.config.workload, self.peer_rows)
            return
        few = self.objective != "imitation"
        losses = ours.ask("train", steps=self.config.steps + 1).reply["losses"]
        if self.config.device == "cuda":
            space = candidates_on_a_gpu(self.peer_rows, few=few)
        else:
            space = candidates(self.peer_rows, self.config.threads, only_fp32=self.config.dtype == "fp32", few=few)
        self.sweep = search(space, partial(self._try, losses, our_dtype), self.screen, 1 if few else FINALISTS)

    def _peers(self) -> dict[str, TrlSetting]:
        """The peer's contestants."""
        if self.python is None:
            return {}
        tuned = {TUNED: TrlSetting(**self.sweep["best"])}
        return tuned | ({BY_DEFAULT: default_setting(self.peer_rows, self.config.threads)} if self.config.against == "trl" else {})

    def _try(self, ours: list[float], our_dtype: str, setting: TrlSetting, give_up: float | None) -> tuple[float, bool]:
        """Seconds of a step in a fresh process with this setting: the mean of those that the rounds will time, for a setting that suits
        one step may not suit the next, whose longest row pads all others; and whether all were taken, for once they must take over
        `give_up` in the mean, the others are left out. Raises `SapwoodError` where its losses are not `ours`."""
        timed = self.config.steps
        with self._trl(setting) as peer:
            exact = self._load_trl(peer, setting).reply["dtype"] == our_dtype == "float32"
            reply = peer.ask("train", steps=timed + 1, give_up=None if give_up is None else give_up * timed).reply
        taken = len(reply["losses"])
        alike = {OURS: [ours[:taken]], peer.name: [reply["losses"]]}
        self._compare(alike, {peer.name} if exact else set())
        return sum(reply["seconds"]) / timed, taken == timed + 1

    def _ours(self) -> Contestant:
        environment = {"PYTHONPATH": str(ROOT / "src"), **threads_of(self.config.threads)}
        return Contestant(OURS, [sys.executable, "-m", "bench.peers.sapwood_sft"], folder=ROOT, environment=environment)

    def _trl(self, setting: TrlSetting) -> Contestant:
        assert self.python is not None
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(self.folder / "hf")}
        environment = {**offline, **setting.environment()}
        script = "bench.peers.trl_sft" if self.objective == "imitation" else "bench.peers.trl_updates"
        return Contestant("TRL", [self.python, "-m", script], folder=ROOT, environment=environment)

    def _load_ours(self, ours: Contestant, *, adapter: bool = False, watch: bool = False, dtype: str | None = None) -> Answer:
        return ours.ask(
            "load",
            watch=watch,
            model=str(self.model),
            device=self.config.device,
            dtype=dtype or self.config.dtype,
            rows=str(self.rows),
            adapter=str(self.adapter) if adapter else None,
            seed=self.config.seed,
            threads=self.config.threads,
            budget=self.config.budget,
            objective=self.objective,
            kl=KL,
            learning_rate=self.config.learning_rate,
            beta2=BETA2,
        )

    def _load_trl(self, peer: Contestant, setting: TrlSetting, *, watch: bool = False) -> Answer:
        return peer.ask(
            "load",
            watch=watch,
            model=str(self.model),
            device=self.config.device,
            rows=str(self.rows),
            adapter=str(self.adapter),
            out=str(self.folder / "trl"),
            objective=self.objective,
            kl=KL,
            learning_rate=self.config.learning_rate,
            beta2=BETA2,
            rows_a_pass=setting.rows,
            **{key: value for key, value in asdict(setting).items() if key != "rows"},
        )

    def _train(self, name: str, contestant: Contestant) -> float:
        reply = contestant.ask("train", steps=self.config.steps + 1).reply
        self.replies.setdefault(name, []).append(reply)
        return float(sum(reply["seconds"]))

    def _limit(self, ours: Contestant) -> float:
        reply = ours.ask("limit", steps=self.config.steps + 1, reference=self.objective != "imitation").reply
        self.replies.setdefault(LIMIT, []).append(reply)
        return sum(_parts(reply["seconds"]).values())

    def _say(self, number: int, name: str, seconds: float) -> None:
        tokens = self.tokens
        speeds = f"{tokens['row_tokens'] / seconds:,.0f} row tokens/s, {tokens['unique_tokens'] / seconds:,.0f} unique tokens/s"
        self.screen.say(f"round {number + 1} of {self.config.rounds}, {name}: {seconds:.2f} s, {speeds}")


def threads_of(threads: int) -> dict[str, str]:
    """The environment in which torch takes so many threads from the start; 0 changes nothing."""
    return {"OMP_NUM_THREADS": str(threads)} if threads else {}


def _parts(steps: list[Mapping[str, float]]) -> dict[str, float]:
    return {part: sum(step[part] for step in steps) for part in steps[0]}


def show(result: dict[str, Any], screen: Screen) -> None:
    """The numbers, for people."""
    screen.title("Result")
    tokens = result["tokens"]
    for name, taken in [*result["contestants"].items(), (LIMIT, result["limit"])]:
        middle = taken["median_seconds"]
        screen.say(
            f"{name:<18}{tokens['row_tokens'] / middle:>9,.0f} row tokens/s {tokens['unique_tokens'] / middle:>8,.0f} unique tokens/s "
            f"({middle / tokens['steps']:.2f} s a step)"
        )
    screen.say(f"{result['share_of_limit']:.1%} of what the matrix products alone allow", "bold")
    for key, peer in (("tuned", "TRL at its best setting"), ("defaults", "TRL with its defaults")):
        if result[f"ratio_to_{key}"] is not None:
            screen.say(f"{result[f'ratio_to_{key}']:.2f} times as fast as {peer}", "bold")
    if result["max_loss_difference"] is not None:
        screen.say(
            f"losses of all steps differ by {result['max_loss_difference']:.1e} nats at most, "
            f"{result['max_relative_loss_difference']:.2%} of the loss"
        )
    for line in result.get("profile", []):
        screen.say(f"{line['share']:6.1%} {line['seconds']:7.3f} s {line['calls']:>7,} × {line['operation']}")
    if result.get("memory_ratio") is not None:
        screen.say(f"peak memory: {result['memory_ratio']:.2f} times that of TRL tuned")


def picture(path: Path, result: dict[str, Any]) -> Path:
    """Row tokens a second, as bars; the limit is one of them."""
    tokens, where, settings = result["tokens"]["row_tokens"], result["machine"], result["settings"]
    bars = [
        Bar(name, taken["per_second"], tokens / taken["most_seconds"], tokens / taken["least_seconds"], ours=name == OURS)
        for name, taken in [*result["contestants"].items(), ("matrix products alone", result["limit"])]
    ]
    trl = result["versions"].get("TRL")
    notes = [
        f"{settings['model']}, LoRA r=16; {settings['rows']} conversations a step; medians of {settings['rounds']} alternating rounds",
        f"{where.get('gpu', {}).get('name') or where['processor']}, {where['usable_cores']} cores; "
        f"Sapwood at {result['commit'] or 'no commit'}" + (f"; TRL {trl['trl']}, transformers {trl['transformers']}" if trl else ""),
        f"{result['share_of_limit']:.0%} of the limit; {result['tokens']['saved_share']:.0%} of the row tokens saved by sharing",
    ]
    times = f": {result['ratio_to_tuned']:.1f} times as fast as TRL tuned" if result["ratio_to_tuned"] is not None else ""
    return draw(path, f"A training step, workload {result['workload']}{times}", f"{tokens:,} row tokens", bars, "tokens/s", notes)
