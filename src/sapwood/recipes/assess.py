"""`sapwood eval`: what a model, or a finished run's adapter, does on held-out conversations.

In: a run directory (its own held-out items again), or a model and files. Out: rates with intervals, and a verdict where
a tuned arm can be compared with others. An evaluation that was stopped goes on where it was, if its model has not changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.chat.overflow import Overflow
from sapwood.config import save_yaml, to_dict
from sapwood.errors import CheckpointError, ConfigError, DataError
from sapwood.evaluate import ArmResult, ArmScore, Verdict, arm_result, bits_per_token, clusters_of, decide, item_records, items_from
from sapwood.evaluate.costs import prices_from
from sapwood.evaluate.decision import dollars
from sapwood.evaluate.report import html_fragment, write_report
from sapwood.evaluate.spending import Purse, cost_record
from sapwood.generate import Engine
from sapwood.model import Dtype, learn_tokens, load_adapter, load_model
from sapwood.recipes.arms import PLAIN, TUNED, Arms, EvalConfig, scorer_for
from sapwood.recipes.calling import ToolsConfig
from sapwood.recipes.hosted import HostedConfig, ask_within
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.playing import prompt_of
from sapwood.recipes.prepare import LOOKED_UP, DataConfig, Prepared, conversations_among, prepare_questions, scan_files, set_apart
from sapwood.recipes.screen import Screen
from sapwood.recipes.seen import FILE, trained_among
from sapwood.recipes.tune import TuneConfig, config_of, fetch_model, load_chat
from sapwood.records import Item
from sapwood.requirements import Prices
from sapwood.run import Run, new_run_path, open_run, read_records, run_named, training_seconds

MAY_CHANGE = ("remote", "prices", "money", "max_cost")
"""Settings that change no answer: an evaluation goes on under others."""


@dataclass(frozen=True, kw_only=True)
class AssessConfig:
    """Evaluation of a model on files of conversations; the last answer of each is the reference."""

    data: tuple[str, ...] = ()
    """Files of rows, as for `sft`; all of their rows are asked, but for the few-shot examples where those are asked for."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id."""
    adapter: Path | None = None
    """An adapter to evaluate beside the base model, such as `runs/my-1/adapter`, or the folder of a model that was trained whole."""
    template: str | None = None
    """A chat template: `chatml`, `plain`, or a Jinja file. An adapter that was trained with one brings it."""
    tools_in_system: bool = False
    """Offer tools in the system message, and write calls and results as text. An adapter that was trained so brings it."""
    out: Path | None = None
    """The run directory; `runs/eval-NAME-1`, `-2`, … where not given."""
    dtype: Dtype = "auto"
    """Type of the base weights."""
    overflow: Overflow = "refuse"
    """A question that outgrows the model's context: `refuse` it (it has no score), `drop oldest` turns, examples among them, or
    `summarise` them; as in chat and server. Rows with an answer must fit whole all the same: bits per token are measured on them."""
    prices: Path | None = None
    """A YAML file of prices, with the keys of the options below: what this evaluation cost, and each arm's answers in use."""
    money: Prices = field(default_factory=Prices)
    max_cost: float | None = None
    """What the hosted model may cost in all, at the prices given; it is asked no further then."""
    calling: ToolsConfig = field(default_factory=ToolsConfig)
    remote: HostedConfig = field(default_factory=HostedConfig)
    rows: DataConfig = field(default_factory=lambda: DataConfig(held_out=0))
    evaluation: EvalConfig = field(default_factory=lambda: EvalConfig(shots=()))

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.remote.hosted_url is None:
            raise ConfigError("max_cost bounds what a hosted model costs, and none is named (--hosted-url, --hosted-model).")


@dataclass(frozen=True)
class AssessResult:
    """What was found."""

    path: Path
    arms: dict[str, ArmResult]
    verdict: Verdict | None
    line: str
    seconds: float
    costs: dict[str, Any] = field(default_factory=dict)
    """The content of `costs.json`; empty where no price was given and no hosted model asked."""

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.path / "report.html"

    def __str__(self) -> str:
        return f"{self.line}\n{self.report}"

    def _repr_html_(self) -> str:
        return html_fragment(self.path)


def config_for(names: Sequence[str]) -> AssessConfig:
    """The config that options are laid over: of a finished run, or of files."""
    run = run_named(names)
    return of_run(run) if run is not None else AssessConfig(data=tuple(names))


def of_run(run: Path) -> AssessConfig:
    """The config that evaluates what a finished run trained, on that run's data, files and settings."""
    config = config_of(run)
    trained = run / ("model" if config.train.full else "adapter")
    return AssessConfig(
        data=config.data,
        model=config.model,
        adapter=trained,
        template=config.template,
        tools_in_system=config.tools_in_system,
        dtype=config.dtype,
        rows=config.rows,
        evaluation=config.evaluation,
    )


def assess(config: AssessConfig, *, screen: Screen | None = None) -> AssessResult:
    """Ask every held-out conversation (or all of them), base model first, then the adapter. Raises a `SapwoodError`."""
    began, screen = time.perf_counter(), screen or Screen(quiet=True)
    config = replace(config, adapter=adapter_in(config.adapter))
    offered, prices = config.calling.play.tools, _prices(config)
    if not config.data:
        raise ConfigError(
            "No data is named. Give a file of conversations, or a run directory: sapwood eval my.jsonl --adapter runs/my-1/adapter"
        )
    with screen.progress("reading") as advance:
        rows = scan_files(config.data, config.rows, advance, questions=True)
    folder = fetch_model(config.model, screen)
    run_before = run_of(config.adapter)
    if run_before is not None and run_before.tools_in_system:
        config = replace(config, tools_in_system=True)
    chat = load_chat(folder, config.template, trained=config.adapter, tools_in_system=config.tools_in_system)
    prepared = prepare_questions(rows, chat, config.rows, screen)
    if run_before is not None and run_before.selects and run_before.data == config.data:
        prepared = set_apart(prepared, config.rows)
    prepared = without_trained(config.adapter, config.data, prepared)
    asked = prepared.held_out or prepared.train
    screen.lines([*prepared.notes, f"{len(asked):,} conversations are asked"])
    items = items_from(conversations_among(asked), cluster=config.rows.cluster, reference=config.rows.reference)
    train_items = items_from(conversations_among(prepared.train, LOOKED_UP), cluster=config.rows.cluster, reference=config.rows.reference)
    refuse_trained(config.adapter, config.data, items)
    if offered and items:
        items = config.calling.questions(items)
        prompt_of(chat, items[0].conversation)  # a template that offers no tools is refused before a model is loaded
        screen.say(f"The model may call {', '.join(offered)}; what it says in the end is judged.")
    guess = scorer_for(config.evaluation, items)
    screen.say(guess.why)
    if guess.scorer is None and config.remote.hosted_url is not None:
        raise ConfigError("hosted_url names a model to ask, and nothing here can judge its answers. Name a --scorer.")

    with open_run(config.out or new_run_path(Path("runs"), f"eval-{Path(config.data[0]).stem}")) as run:
        _claim(run, config, chat, folder)
        run.replace("items", *item_records(items))
        evaluation = config.evaluation if prepared.held_out else replace(config.evaluation, shots=())
        arms = None
        if guess.scorer is not None:
            arms = Arms(items, train_items, chat, guess.scorer, evaluation, run, screen, overflow=config.overflow)
        scores, lines = _ask(config, folder, chat, arms, prepared, prices, screen)
        verdict = decide(scores, scorer=guess.name) if config.adapter is not None and scores else None
        if verdict is not None:
            run.write_json("verdict", verdict.to_dict())
        costs = _weigh(config, run, scores, prices, screen)
        write_report(run.path)
    results = {name: arm_result([score for score in scores if score.arm == name]) for name in dict.fromkeys(one.arm for one in scores)}
    rates = "; ".join(_rate_line(name, arm) for name, arm in results.items())
    line = verdict.line if verdict is not None else rates or "; ".join(lines)
    return AssessResult(run.path, results, verdict, line, time.perf_counter() - began, costs)


def _prices(config: AssessConfig) -> Prices:
    prices = prices_from(config.prices, config.money)
    if prices.hosted_rate is not None:
        raise ConfigError(
            "hosted_rate is read by `sapwood decide` alone, where no model is asked. Leave it out; --hosted-url has it asked."
        )
    Purse(prices, 1, config.max_cost)  # raises for a bound that cannot be kept, before any work is done
    return prices


def _weigh(config: AssessConfig, run: Run, scores: Sequence[ArmScore], prices: Prices, screen: Screen) -> dict[str, Any]:
    """What the answers cost, recorded and said; empty where nobody asks."""
    if not scores or (prices == Prices() and config.remote.hosted_url is None):
        return {}
    trained = config.adapter.parent if run_of(config.adapter) is not None and config.adapter is not None else None
    record = cost_record(scores, prices, TUNED, training_seconds(trained) if trained is not None else 0.0)
    run.write_json("costs", record)
    for arm, cost in record["costs"].items():
        if cost["dollars"] is not None:
            right = cost["dollars_a_right_answer"]
            each = "nothing was right" if right is None else f"{dollars(1000 * right)} a thousand right ones"
            screen.say(f"{arm}: its {cost['answers']:,} answers cost {dollars(cost['dollars'])}; {each}.")
    return record


def adapter_in(folder: Path | None) -> Path | None:
    """The folder of the adapter (or whole model) itself, where a run directory was named. Raises `ConfigError` where there is none."""
    if folder is None:
        return None
    for place in (folder, folder / "adapter", folder / "model"):
        if (place / "adapter_config.json").is_file() or (place / "config.json").is_file():
            return place
    raise ConfigError(f"adapter is {folder}, which holds no adapter. Name a run directory, or its `adapter` folder.")


def run_of(adapter: Path | None) -> TuneConfig | None:
    """The settings with which an adapter was trained, where it lies in its run."""
    file = adapter.parent / "config.yaml" if adapter is not None else None
    if file is None or not file.is_file():
        return None
    return config_of(file.parent)


def without_trained(adapter: Path | None, data: tuple[str, ...], prepared: Prepared) -> Prepared:
    """Rows of other files whose questions the run was trained on are left out, and a note says so. `DataError` where none is left."""
    before = run_of(adapter)
    if adapter is None or before is None or before.data == data:
        return prepared
    side = "held_out" if prepared.held_out else "train"
    rows: Sequence[Any] = getattr(prepared, side)
    examples = prepared.held_out_examples if prepared.held_out else prepared.examples
    run = adapter.parent
    seen = set(trained_among(run, rows) or ())
    if not seen:
        return prepared
    new = [place for place in range(len(rows)) if place not in seen]
    if not new:
        raise DataError(
            f"{run} was trained on all {len(rows)} of these questions (such as {rows[0].where}), wherever this copy of them lies, so "
            f"answers to them prove nothing. `sapwood eval {run}` asks what it held out; or name a file of new rows."
        )
    said = (
        f"{run} was trained on {len(seen):,} of these {len(rows):,} questions (such as {rows[min(seen)].where}): they are left out, for "
        "answers to them prove nothing."
    )
    kept, left = [rows[place] for place in new], [examples[place] for place in new] if examples else []
    notes = [*prepared.notes, said]
    if prepared.held_out:
        return replace(prepared, held_out=kept, held_out_examples=left, notes=notes)
    return replace(prepared, train=kept, examples=left, notes=notes)


def refuse_trained(adapter: Path | None, data: tuple[str, ...], items: list[Item]) -> None:
    """Refuse all but what the run held out of its own data, and what stands where a run without keys was trained. Raises `DataError`."""
    before = run_of(adapter)
    if adapter is None or before is None:
        return
    run, own = adapter.parent, before.data == data
    if not own and (run / FILE).is_file():
        return  # by their content
    held_out = {record["item"] for record in read_records(run / "items.jsonl")}
    trained = {_place(row["file"], row["line"]) for row in read_records(run / "ledger.jsonl") if row.get("status") == "trained"}
    others = [item for item in items if item.id not in held_out and (own or _stands_in(trained, item))]
    if others:
        raise DataError(
            f"{len(others)} of {len(items)} items are not among those that {run} held out (such as {others[0].conversation.where}), so "
            f"it may have been trained on them. `sapwood eval {run}` asks what it held out; if that is what you gave, its data or the way "
            "it is split has changed: put both back, or name a file of new rows."
        )


def _place(file: str, line: int) -> tuple[str, int]:
    return os.path.realpath(file), line


def _stands_in(trained: Collection[tuple[str, int]], item: Item) -> bool:
    source = item.conversation.source
    return source is not None and _place(source.file, source.line) in trained


def _claim(run: Run, config: AssessConfig, chat: Chat, folder: Path) -> None:
    """Make the directory this evaluation's own. Raises `CheckpointError` if it holds something else, whose scores are not ours."""
    if (run.path / "config.yaml").exists() and not (run.path / "identity.json").exists():
        raise CheckpointError(f"{run.path} holds another run. Choose another folder with --out.")
    settings = hash_of({key: value for key, value in to_dict(config).items() if key not in MAY_CHANGE} | {"out": None})
    tools = {"tools": hash_of(config.calling.written)} if config.calling.tools else {}
    claim(run, {"settings": settings, "template": chat.fingerprint, "model": hash_of_weights(folder, config.adapter), **tools})
    save_yaml(config, run.path / "config.yaml")


def _ask(
    config: AssessConfig, folder: Path, chat: Chat, arms: Arms | None, prepared: Prepared, prices: Prices, screen: Screen
) -> tuple[list[ArmScore], list[str]]:
    """The scores of every arm, a hosted model's first, and a sentence on the bits per token of each model of our own."""
    remote = config.remote.remote(arms.run.path) if arms is not None else None
    hosted: list[ArmScore] = []
    if remote is not None and arms is not None:
        rounds = 1 + config.calling.turns if config.calling.tools else 1
        purse = Purse(prices, config.evaluation.max_new_tokens, config.max_cost, rounds)
        hosted, _ = ask_within(remote, arms, purse, config.calling)
    model = load_model(folder, config.dtype)
    for note in (*model.notes, *chat.notes, *chat.warnings, *learn_tokens(model, chat.new_tokens.values(), chat.known_tokens.values())):
        screen.say(note)
    scores: list[ArmScore] = []
    lines = []
    for name in (PLAIN, TUNED) if config.adapter is not None else (PLAIN,):
        if name == TUNED and config.adapter is not None:
            whole = (config.adapter / "config.json").is_file()
            model = load_model(config.adapter, config.dtype) if whole else load_adapter(model, config.adapter)
        if arms is not None:
            engine = config.calling.around(Engine(model, chat), arms.prompt)
            if name == TUNED:
                scores += arms.one(TUNED, engine)
            else:
                scores += (arms.free() if prepared.held_out else []) + arms.base(engine)
        clusters = clusters_of(prepared.held_out or prepared.train, cluster=config.rows.cluster)
        if not (prepared.held_out_examples or prepared.examples):
            continue  # questions without answers: there is no token to count bits of
        bits = bits_per_token(model, prepared.held_out_examples or prepared.examples, clusters=clusters)
        low, high = bits.interval.low, bits.interval.high
        spread = f"[{low:.3f}, {high:.3f}]" if isfinite(high - low) else "(too few rows for an interval)"
        lines.append(f"{name}: {bits.mean:.3f} bits a token {spread}")
        screen.say(lines[-1])
    return scores + hosted, lines


def _rate_line(name: str, arm: ArmResult) -> str:
    if arm.rate is None or arm.interval is None:
        return f"{name}: nothing could be scored"
    return f"{name}: {arm.rate:.1%} [{arm.interval.low:.1%}, {arm.interval.high:.1%}] of {arm.items} items"
