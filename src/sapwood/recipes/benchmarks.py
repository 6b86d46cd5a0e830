"""`sapwood eval --benchmarks …`: standard benchmarks of a model before and after tuning, or of several models.

In: names of benchmarks, and the models. Out: a run directory with one record a model, benchmark and question (`benchmarks.jsonl`), rates
with intervals, for each other model the paired difference to the first, and a page of all (`report.html`). A stopped evaluation goes on
with the pairs of model and benchmark that are missing. The first model is the base; a tuned one beside it says what got better and worse.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.config import save_yaml, to_dict
from sapwood.errors import ConfigError
from sapwood.evaluate.benchmark_page import write_benchmarks
from sapwood.evaluate.benchmark_sets import BENCHMARKS, Chosen, choose
from sapwood.evaluate.code_tests import code_tests
from sapwood.evaluate.extras import needed
from sapwood.evaluate.sandbox import require_barriers
from sapwood.evaluate.scorer_names import RUNS_CODE, scorer_named
from sapwood.evaluate.scorers import Scorer
from sapwood.model import Dtype, LanguageModel, learn_tokens, load_adapter, load_model
from sapwood.recipes.assess import adapter_in, of_run
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model, load_chat
from sapwood.run import Run, new_run_path, open_run, run_named
from sapwood.stats import Difference, Interval, mean_interval, paired_difference

RECORDS = "benchmarks"


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Standard benchmarks."""

    benchmarks: tuple[str, ...] = ()
    """Which, such as mmlu-slice, gsm8k or gsm8k=FILE.jsonl; several with commas between them. docs/evaluation.md lists them."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id."""
    adapter: Path | None = None
    """An adapter or a run directory to measure beside the model."""
    beside: tuple[str, ...] = ()
    """Other models to ask the very same questions: names, folders or hub ids."""
    template: str | None = None
    """A chat template for models without one."""
    limit: int = 100
    """Questions of each benchmark, drawn by the seed; 0 asks all."""
    shots: int | None = None
    """Examples before each question; the benchmark's own number where not given."""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Whether questions go through the model's chat template; auto is what each benchmark is usually asked by."""
    allow_code: bool = False
    """Let programs that the model wrote run (humaneval), in a child process that reaches no network and no file of yours."""
    out: Path | None = None
    """The run directory; `runs/benchmarks-1`, `-2`, … where not given."""
    dtype: Dtype = "auto"
    """Type of the weights."""
    seed: int = 0
    """Of the draw of questions and examples."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError(f"limit is {self.limit}; give a number of questions, or 0 for all.")
        if self.shots is not None and self.shots < 0:
            raise ConfigError(f"shots is {self.shots}; give a number of examples, or 0 for none.")


@dataclass(frozen=True)
class BenchmarkRow:
    """One model on one benchmark, and its paired difference to the first model."""

    benchmark: str
    arm: str
    rate: float | None
    interval: Interval | None
    scored: int
    unscored: int
    cut: int
    """Questions whose beginning did not fit the context."""
    change: Difference | None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        change = self.change
        return {
            "benchmark": self.benchmark,
            "arm": self.arm,
            "rate": self.rate,
            "interval": None if self.interval is None else [self.interval.low, self.interval.high],
            "scored": self.scored,
            "unscored": self.unscored,
            "cut": self.cut,
            "change": None if change is None else {"mean": change.mean, **_bounds(change), "n": change.n},
        }

    def __str__(self) -> str:
        if self.rate is None or self.interval is None:
            return f"{self.benchmark:<12}{self.arm:<24}nothing could be scored ({self.unscored} without a value)"
        rate = f"{self.rate:6.1%} [{self.interval.low:.1%}, {self.interval.high:.1%}] of {self.scored}"
        notes = [f"{self.unscored} without a value"] * bool(self.unscored) + [f"{self.cut} cut to fit the context"] * bool(self.cut)
        change = "" if self.change is None else f"   {_told(self.change)}"
        return f"{self.benchmark:<12}{self.arm:<24}{rate}{change}" + (f"   ({', '.join(notes)})" if notes else "")


@dataclass(frozen=True)
class BenchmarkResult:
    """What was found."""

    path: Path
    rows: tuple[BenchmarkRow, ...]
    seconds: float

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.path / "report.html"

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))


def config_for(names: Sequence[str]) -> BenchmarkConfig:
    """The config that flags are laid over: a run's base model and what it trained, or nothing."""
    run = run_named(names)
    if run is None:
        if names:
            raise ConfigError(f"Benchmarks bring their own questions; {names[0]} is no run directory. Leave it out, or name a run.")
        return BenchmarkConfig()
    of = of_run(run)
    return BenchmarkConfig(model=of.model, adapter=of.adapter, template=of.template, dtype=of.dtype)


def benchmark(config: BenchmarkConfig, *, screen: Screen | None = None) -> BenchmarkResult:
    """Ask every benchmark of every model. Raises a `SapwoodError` before a model is loaded for what cannot be asked."""
    began, screen = time.perf_counter(), screen or Screen(quiet=True)
    names = [name.strip() for entry in config.benchmarks for name in entry.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"Name benchmarks: --benchmarks mmlu-slice. Known: {', '.join(BENCHMARKS)}; NAME=FILE reads a file.")
    needed("lm_eval", "A benchmark")
    from sapwood.recipes.benchmark_tasks import item_of

    with screen.progress("questions") as advance:
        chosen = [choose(name, shots=config.shots, limit=config.limit or None, seed=config.seed, report=advance) for name in names]
    scorers = {each.benchmark.name: _scorer(each, config) for each in chosen}
    if len(scorers) < len(chosen):
        raise ConfigError(f"benchmarks names one twice: {', '.join(names)}. Name each once.")
    screen.lines([line for each in chosen for line in (each.line, *each.notes)])
    asked = {item_of(question).id: question.query for each in chosen for question in each.asked}
    config = replace(config, adapter=adapter_in(config.adapter))
    with open_run(config.out or new_run_path(Path("runs"), "benchmarks")) as run:
        settings = to_dict(config) | {"out": None, "benchmarks": names}
        claim(run, {"settings": hash_of(settings), "questions": hash_of(list(asked))})
        save_yaml(config, run.path / "config.yaml")
        for arm, folder, adapter in _arms(config, screen):
            _one_model(arm, folder, adapter, config, chosen, scorers, run, screen)
        rows = summary(run.read(RECORDS))
        described = [_described(each, config) for each in chosen]
        run.write_json(RECORDS, {"rows": [row.to_dict() for row in rows], "benchmarks": described})
        write_benchmarks(run.path / "report.html", [row.to_dict() for row in rows], described, run.read(RECORDS), asked)
    return BenchmarkResult(run.path, rows, time.perf_counter() - began)


def summary(records: Sequence[dict[str, Any]]) -> tuple[BenchmarkRow, ...]:
    """Rates and paired differences to the first model, benchmark by benchmark. Questions without a value count for nobody.

    Questions are counted, not answers: several samples of one are their mean. Where records name a `cluster`, intervals are over clusters.
    """
    rows: list[BenchmarkRow] = []
    for name in dict.fromkeys(record["benchmark"] for record in records):
        by_arm: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            if record["benchmark"] == name:
                by_arm.setdefault(record["arm"], []).append(record)
        first = _values(next(iter(by_arm.values())))
        rows += [_row(name, arm, own, first if number else {}) for number, (arm, own) in enumerate(by_arm.items())]
    return tuple(rows)


def _values(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Question → the mean of its answers that have a value; without those that have none."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record["value"] is not None:
            found.setdefault(record["item"], []).append(record["value"])
    return {item: sum(values) / len(values) for item, values in found.items()}


def _row(name: str, arm: str, records: Sequence[dict[str, Any]], first: Mapping[str, float]) -> BenchmarkRow:
    """`first` are the values of the model that is compared with; empty for that model itself."""
    named = {record["item"]: record["cluster"] for record in records if record.get("cluster") is not None}
    values = _values(records)
    clusters = [named.get(item, ("item", item)) for item in values] if named else None
    pairs = [item for item in values if item in first]
    return BenchmarkRow(
        benchmark=name,
        arm=arm,
        rate=sum(values.values()) / len(values) if values else None,
        interval=mean_interval(list(values.values()), clusters) if values else None,
        scored=len(values),
        unscored=len({record["item"] for record in records}) - len(values),
        cut=len({record["item"] for record in records if record["cut"]}),
        change=paired_difference(
            [first[item] for item in pairs], [values[item] for item in pairs], [named.get(item, ("item", item)) for item in pairs]
        )
        if pairs
        else None,
    )


def _bounds(change: Difference) -> dict[str, float]:
    return {"low": change.interval.low, "high": change.interval.high}


def _told(change: Difference) -> str:
    low, high = change.interval.low, change.interval.high
    word = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    return f"{change.mean:+.1%} [{low:+.1%}, {high:+.1%}] {word}"


def _scorer(chosen: Chosen, config: BenchmarkConfig) -> Scorer | None:
    if chosen.benchmark.kind == "choice":
        return None
    if chosen.benchmark.scorer == RUNS_CODE:
        if not config.allow_code:
            raise ConfigError(
                f"{chosen.benchmark.name} runs programs that the model wrote, in a child process that reaches no network and no file. "
                "Allow it with --allow-code."
            )
        require_barriers()
        return code_tests()
    return scorer_named(chosen.benchmark.scorer)


def _arms(config: BenchmarkConfig, screen: Screen) -> list[tuple[str, Path, Path | None]]:
    """(name, model folder, adapter) in the order in which they are asked: the base first."""
    base = fetch_model(config.model, screen)
    arms: list[tuple[str, Path, Path | None]] = [(config.model, base, None)]
    if config.adapter is not None:
        arms.append(("tuned", base, config.adapter))
    return arms + [(name, fetch_model(name, screen), None) for name in config.beside]


def _one_model(
    arm: str,
    folder: Path,
    adapter: Path | None,
    config: BenchmarkConfig,
    chosen: Sequence[Chosen],
    scorers: dict[str, Scorer | None],
    run: Run,
    screen: Screen,
) -> None:
    """Every benchmark that this model has not been asked yet; each is recorded as a whole."""
    from sapwood.recipes.benchmark_tasks import ask
    from sapwood.recipes.harness import ForestLM

    have: dict[str, int] = {}
    for record in run.read(RECORDS):
        if record["arm"] == arm:
            have[record["benchmark"]] = have.get(record["benchmark"], 0) + 1
    missing = [each for each in chosen if have.get(each.benchmark.name, 0) < len(each.asked)]
    if not missing:
        return
    chat = load_chat(folder, config.template, trained=adapter)
    model = _loaded(folder, adapter, config, chat, screen)
    for each in missing:
        name = each.benchmark.name
        with screen.progress(f"{arm}: {name}") as advance:
            lm = ForestLM(model, chat, on_progress=lambda what, done, total: advance(done, total, what))
            through = each.benchmark.chat if config.chat == "auto" else config.chat == "yes"
            records = ask(each, lm, scorers[name], chat=through, seed=config.seed)
        run.append(RECORDS, *({"arm": arm, "benchmark": name, **record} for record in records))
        screen.say(str(summary([record for record in run.read(RECORDS) if record["benchmark"] == name])[-1]))


def _loaded(folder: Path, adapter: Path | None, config: BenchmarkConfig, chat: Chat, screen: Screen) -> LanguageModel:
    whole = adapter is not None and (adapter / "config.json").is_file()
    model = load_model(adapter if whole and adapter is not None else folder, config.dtype)
    for note in (*model.notes, *chat.notes, *chat.warnings, *learn_tokens(model, chat.new_tokens.values(), chat.known_tokens.values())):
        screen.say(note)
    return model if whole or adapter is None else load_adapter(model, adapter)


def _described(chosen: Chosen, config: BenchmarkConfig) -> dict[str, Any]:
    return {
        "name": chosen.benchmark.name,
        "source": chosen.source,
        "asked": len(chosen.asked),
        "of": chosen.of,
        "examples": len(chosen.examples),
        "chat": chosen.benchmark.chat if config.chat == "auto" else config.chat == "yes",
        "adapter": hash_of_weights(config.adapter),
    }
