"""The chain, from rows that are ready to a verdict that holds:

    ledger → model → base arms → training (with questions answered before, during, after) → tuned arm → verdict → report

In: prepared rows and an open run. Out: a `TuneResult`, and the run directory that holds all of it. A chain that was
stopped goes on where it was: scores that were recorded are kept, training continues from its checkpoint.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import psutil
import torch

from sapwood import kernels
from sapwood.attention import flex
from sapwood.chat import Chat, coloured
from sapwood.config import to_dict
from sapwood.errors import DataError
from sapwood.evaluate import (
    ArmScore,
    BitsChange,
    BitsPerToken,
    Guess,
    Verdict,
    bits_change,
    bits_per_token,
    clusters_of,
    decide,
    item_records,
    items_from,
)
from sapwood.evaluate.bits import STATEMENT
from sapwood.evaluate.charts import signed
from sapwood.evaluate.curves import read_curves
from sapwood.evaluate.report import html_fragment, write_report
from sapwood.generate import Engine
from sapwood.model import Dtype, LanguageModel, device_name, learn_tokens, load_model
from sapwood.model import on_gpu as layers_on_gpu
from sapwood.recipes.arms import TUNED, Arms, EvalConfig, scorer_for
from sapwood.recipes.general import general_examples
from sapwood.recipes.live import WatchConfig, show_course, watching
from sapwood.recipes.prepare import LOOKED_UP, DataConfig, Prepared, conversations_among
from sapwood.recipes.samples import Samples, evenly
from sapwood.recipes.screen import Screen
from sapwood.recipes.seen import remember
from sapwood.recipes.track import tracking
from sapwood.records import Example, Item
from sapwood.records.protocols import release
from sapwood.run import Run, step_records
from sapwood.train import SftConfig, SftResult, sft
from sapwood.train.estimate import Estimate
from sapwood.train.memory import give_back

MOST_SAID = 2
"""Sentences on the curves; the report holds all of them."""

RECORDS_A_WRITE = 10_000

HELD_OUT, GENERAL = "held-out answers", "general text"


@dataclass(frozen=True)
class TuneResult:
    """What a finished chain leaves. Shows itself in a notebook."""

    path: Path
    """The run directory."""
    line: str
    """The verdict in one sentence."""
    verdict: Verdict | None
    """None where no answer could be judged, or nothing was held out."""
    bits: dict[str, BitsChange]
    """Bits per token before and after, by kind of text."""
    training: SftResult
    seconds: float

    @property
    def adapter(self) -> Path:
        """The trained adapter (or the whole model)."""
        adapter = self.path / "adapter"
        return adapter if adapter.is_dir() else self.path / "model"

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.path / "report.html"

    def summary(self) -> dict[str, Any]:
        """The result for machines: rates are shares of 1, `difference` and `interval` are percentage points."""
        training, verdict = self.training, self.verdict
        found: dict[str, Any] = {
            "line": self.line,
            "run": str(self.path),
            "report": str(self.report),
            "seconds": round(self.seconds, 1),
            "steps": training.steps,
            "row_tokens_per_second": training.row_tokens / training.seconds if training.seconds else None,
            "unique_tokens_per_second": training.unique_tokens / training.seconds if training.seconds else None,
            "bits_per_token": {name: change.to_dict() for name, change in self.bits.items()},
        }
        return found | (_summary_of(verdict) if verdict is not None else {"decision": "not shown"})

    def __str__(self) -> str:
        return f"{self.line}\n{self.report}"

    def _repr_html_(self) -> str:
        return html_fragment(self.path)


def _summary_of(verdict: Verdict) -> dict[str, Any]:
    difference = verdict.difference
    return {
        "decision": verdict.decision,
        "arms": {name: arm.rate for name, arm in verdict.arms.items()},
        "tuned": verdict.arms[verdict.tuned].rate,
        "best_other": verdict.arms[verdict.best_other].rate,
        "best_other_name": verdict.best_other,
        "difference": 100 * difference.mean,
        "interval": [100 * difference.interval.low, 100 * difference.interval.high],
        "held_out": difference.n,
        "got_worse": difference.losses,
        "units": "rates are shares of 1; difference and interval are percentage points",
    }


@dataclass
class _Chain:
    chat: Chat
    prepared: Prepared
    rows: DataConfig
    evaluation: EvalConfig
    run: Run
    screen: Screen
    watch: WatchConfig
    items: list[Item] = field(default_factory=list)
    train_items: list[Item] = field(default_factory=list)
    guess: Guess = field(default_factory=lambda: Guess(None, "none", "Nothing is held out."))
    general: list[Example] = field(default_factory=list)
    expected: Estimate | None = None


def prove(
    folder: Path,
    chat: Chat,
    prepared: Prepared,
    *,
    rows: DataConfig,
    evaluation: EvalConfig,
    train: SftConfig,
    dtype: Dtype,
    run: Run,
    screen: Screen,
    watch: WatchConfig,
    expected: Estimate | None = None,
) -> TuneResult:
    """Run the chain, of which a plan said what is `expected`. Raises what its parts raise; what was finished stays in the run directory."""
    began = time.perf_counter()
    chain = _Chain(chat, prepared, rows, evaluation, run, screen, watch, expected=expected)
    _show_rows(chain)
    _make_items(chain)

    screen.title("Model")
    model = load_model(folder, dtype)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    size = f"{parameters / 1e6:,.0f} M" if parameters >= 1e6 else f"{parameters:,}"
    screen.say(f"{size} parameters, {type_and_place(model)}")
    for note in (*model.notes, *chat.notes, *chat.warnings, *learn_tokens(model, chat.new_tokens.values(), chat.known_tokens.values())):
        screen.say(note)
    if model.device.type == "cpu":
        kernels.prepare(model.dtype, screen.say)
    write_environment(run, folder, model, chat, prepared)

    scores: list[ArmScore] = []
    before = _bits(chain, model)
    arms = None
    if chain.guess.scorer is not None:
        screen.title("Before: what needs no tuning")
        arms = Arms(chain.items, chain.train_items, chat, chain.guess.scorer, evaluation, run, screen)
        engine = Engine(model, chat)
        scores += arms.free() + arms.base(engine)
        engine.forget()
        release(arms.scorer)  # a reward model's weights are not wanted while another model is trained

    screen.title("Training")
    give_back(model.device)  # training takes what the plan says, without the caches of what was answered
    result = _train(chain, model, train)
    _say_curves(chain)

    if arms is not None:
        screen.title("After")
        scores += arms.one(TUNED, Engine(result.model, chat))
    after = _bits(chain, result.model)
    changes = {name: bits_change(before[name], after[name]) for name in before}
    line, verdict = _conclude(chain, scores, changes)
    write_report(run.path)
    return TuneResult(run.path, line, verdict, changes, result, time.perf_counter() - began)


def type_and_place(model: LanguageModel) -> str:
    """What a model is computed in and by, in words."""
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' * (threads != 1)}" if model.device.type == "cpu" else device_name(model.device)
    return f"{str(model.dtype).removeprefix('torch.')}, {where}"


def _show_rows(chain: _Chain) -> None:
    chain.screen.title("Rows")
    chain.screen.lines([*chain.prepared.notes, *chain.prepared.ledger.lines_for_people()])
    chain.run.clear("ledger")
    records = chain.prepared.ledger.records()
    while batch := list(itertools.islice(records, RECORDS_A_WRITE)):
        chain.run.append("ledger", *batch)
    remember(chain.run, chain.prepared.train)
    if chain.prepared.examples:
        shortest = min(chain.prepared.examples[:50], key=lambda example: example.length)
        chain.screen.say("One row; what is trained stands on green:")
        chain.screen.show(coloured(shortest, chain.chat, colour=chain.screen.console.color_system is not None))


def _make_items(chain: _Chain) -> None:
    """Items of the held-out and the training conversations, and the scorer that fits their references."""
    prepared, rows = chain.prepared, chain.rows
    if not prepared.held_out:
        chain.screen.say("Nothing is held out, so nothing can be said about whether training helps.")
        return
    chain.general = general_examples(chain.chat)
    chain.items = items_from(conversations_among(prepared.held_out), cluster=rows.cluster, reference=rows.reference)
    if not chain.items:
        chain.screen.say("What is held out are texts without answers, so only bits per token are measured.")
        return
    seen = conversations_among(prepared.train, LOOKED_UP)
    if len(prepared.train) > LOOKED_UP:
        chain.screen.say(f"Lookups and few-shot examples see {LOOKED_UP:,} of the {len(prepared.train):,} training rows, evenly spread.")
    chain.train_items = items_from(seen, cluster=rows.cluster, reference=rows.reference)
    chain.run.clear("items")
    chain.run.append("items", *item_records(chain.items))
    chain.guess = scorer_for(chain.evaluation, chain.items)
    chain.screen.say(chain.guess.why)


def _bits(chain: _Chain, model: LanguageModel) -> dict[str, BitsPerToken]:
    if not chain.prepared.held_out_examples:
        return {}
    clusters = clusters_of(chain.prepared.held_out, cluster=chain.rows.cluster)
    bits = {HELD_OUT: bits_per_token(model, chain.prepared.held_out_examples, clusters=clusters)}
    return bits | ({GENERAL: bits_per_token(model, chain.general)} if chain.general else {})


def _train(chain: _Chain, model: LanguageModel, config: SftConfig) -> SftResult:
    screen, run = chain.screen, chain.run
    asked = evenly(chain.items, chain.watch.samples)
    samples = Samples(asked, chain.chat, chain.guess.scorer, chain.evaluation.max_new_tokens, run)
    with tracking(run, chain.watch.track, to_dict(config), screen.say) as tell, watching(screen, run, tell) as watch:

        def observe(step: int, current: LanguageModel) -> None:
            watch.evaluated(step)
            watch.answered(step, samples.ask(current, step))

        result = sft(
            model,
            chain.prepared.examples,
            chain.prepared.watched_examples,
            config,
            run,
            report=watch.report,
            observe=observe,
            say=screen.say,
            beside=chain.chat.saved_files(),
            mixture=chain.prepared.mixture,
            expected=chain.expected,
        )
    show_course(watch, samples.given(), screen)
    if result.seconds:
        saved = 1 - result.unique_tokens / result.row_tokens
        screen.say(
            f"{result.steps} steps, {result.row_tokens:,} row tokens at {result.row_tokens / result.seconds:,.0f} a second; "
            f"{saved:.0%} of them saved by sharing."
        )
    if result.first_eval_loss is not None and result.last_eval_loss is not None:
        screen.say(f"Held-out loss {result.first_eval_loss:.3f} → {result.last_eval_loss:.3f} nats a token.")
    return result


def _say_curves(chain: _Chain) -> None:
    """What an experienced eye would see in the curves, alarms first."""
    found = read_curves(step_records(chain.run.path / "metrics.jsonl"), samples=chain.run.read("samples"))
    for finding in found[:MOST_SAID]:
        chain.screen.say(finding.line)


def _conclude(chain: _Chain, scores: list[ArmScore], changes: dict[str, BitsChange]) -> tuple[str, Verdict | None]:
    """The verdict, or what can be said without one; written to `verdict.json`."""
    if scores:
        verdict = decide(scores, tuned=TUNED, scorer=chain.guess.name, bits_per_token=changes)
        chain.run.write_json("verdict", verdict.to_dict())
        return verdict.line, verdict
    if not changes:
        line = "Trained. Nothing was held out, so nothing is said about whether it helped."
    else:
        change = changes[HELD_OUT]
        line = (
            f"Held-out answers take {change.before.mean:.3f} → {change.after.mean:.3f} bits a token "
            f"({signed(change.mean, 3)} [{signed(change.interval.low, 3)}, {signed(change.interval.high, 3)}]). {STATEMENT}"
        )
    bits = {name: change.to_dict() for name, change in changes.items()}
    chain.run.write_json(
        "verdict",
        {"decision": "not shown", "line": line, "reason": chain.guess.why, "arms": {}, "bits_per_token": bits, "scorer": chain.guess.name},
    )
    return line, None


def write_environment(run: Run, folder: Path, model: LanguageModel, chat: Chat, prepared: Prepared) -> None:
    """What `environment_of` says, and the template's arguments that most rows have."""
    some = conversations_among(prepared.train, 1000)
    arguments = Counter(orjson.dumps(dict(row.template_arguments), option=orjson.OPT_SORT_KEYS) for row in some)
    usual = orjson.loads(arguments.most_common(1)[0][0]) if arguments else {}
    run.write_json("environment", {**environment_of(folder, model, chat), "template_arguments": usual})


def environment_of(folder: Path, model: LanguageModel, chat: Chat) -> dict[str, Any]:
    """Versions, machine, and where the model came from. Raises `DataError` where the model folder's own record is damaged."""
    origin = folder / "sapwood.json"
    packages = ("sapwood", "torch", "transformers", "peft", "tokenizers", "numpy", "scipy")
    content: dict[str, Any] = {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": psutil.cpu_count(logical=False),
            "threads": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "device": device_name(model.device),
            "kernels": model.device.type == "cpu" and model.dtype == torch.bfloat16 and kernels.cpu_kernels() is not None,
        },
        "model": {"folder": folder.name, "dtype": str(model.dtype), "shares_prefixes": model.shares_prefixes},
        "template_and_tokenizer_sha256": chat.fingerprint,
        "today": chat.today.isoformat(),
    }
    if model.device.type == "cuda":
        refused = layers_on_gpu.why_not() | ({"attention": flex.why_not()} if flex.why_not() else {})
        content["gpu"] = {"compiled_layers": layers_on_gpu.count_on_gpu(model.module), "left_out": refused, "cuda": torch.version.cuda}
    if origin.is_file():
        try:
            content["model"]["origin"] = orjson.loads(origin.read_bytes())
        except orjson.JSONDecodeError as error:
            raise DataError(f"{origin}: damaged ({error}). Delete the folder and pull the model again.") from None
    return content
