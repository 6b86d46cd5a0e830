"""`sapwood decide`: should you fine-tune at all? Files in; yes, no or not yet out, with what it rests on.

    rows → items → arms that need no tuning → hosted model? → pilot (`recipes.pilot`) → learning curve, forms, costs → answer

In: the same files and knobs as `sapwood sft`, prices, a time. Out: a run directory with `decision.json` and `report.html`.
A decision that was stopped, or was given too little time, goes on if its directory is named again: nothing is asked twice.
Left out on purpose: training on all rows. That is `sapwood sft`, whose verdict is measured and not foretold.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from sapwood import kernels
from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.config import load_yaml, save_yaml, to_dict
from sapwood.errors import CheckpointError, ConfigError
from sapwood.evaluate import ArmScore, item_records, items_from, scores_from
from sapwood.evaluate.costs import prices_from
from sapwood.evaluate.decision import Decision, after_pilot, before_pilot
from sapwood.evaluate.format_check import form_of
from sapwood.evaluate.hosted import HOSTED, Answer, hosted_arm, read_answers
from sapwood.evaluate.report import html_fragment, write_report
from sapwood.generate import Engine
from sapwood.model import Dtype, learn_tokens, load_model
from sapwood.recipes.arms import PLAIN, Arms, EvalConfig, scorer_for
from sapwood.recipes.chain import write_environment
from sapwood.recipes.findings import Findings, decision_record
from sapwood.recipes.hosted import HostedConfig, ask_hosted
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.pilot import Pilot, PilotConfig, fewest_rows
from sapwood.recipes.prepare import LOOKED_UP, DataConfig, Prepared, conversations_among, prepare, scan_files
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import day_of, fetch_model, load_chat
from sapwood.records import Example, Sampler, hash_of_rows
from sapwood.requirements import Prices
from sapwood.run import Run, new_run_path, open_run, read_json, require_known, run_named
from sapwood.train import SftConfig
from sapwood.train.order import num_steps

MAY_CHANGE = ("out", "minutes", "wish", "gain", "hosted", "remote", "prices", "money", "pilot")
"""Knobs that a directory named again may have otherwise: no score depends on them. Of the pilot's, the steps may not."""
RECORDS_A_WRITE = 10_000


@dataclass(frozen=True, kw_only=True)
class DecideConfig:
    """Should you fine-tune, and on how many rows?"""

    data: tuple[str, ...] = ()
    """Files of rows, as for `sft`."""
    model: str = DEFAULT_MODEL
    """The model that would be tuned: a name, a local folder, or a hub id."""
    template: str | None = None
    """A chat template: `chatml`, `plain`, or a Jinja file."""
    tools_in_system: bool = False
    """Offer tools in the system message, and write calls and results as text."""
    out: Path | None = None
    """The run directory; `runs/decide-NAME-1`, `-2`, … where not given."""
    dtype: Dtype = "auto"
    """Type of the base weights."""
    minutes: float = 60.0
    """Time for this sitting. The arms that need no tuning are always asked; the pilot takes what is left."""
    wish: float | None = None
    """The share of right answers that you need, such as 0.9: how many rows does it take?"""
    gain: float = 0.05
    """The least gain over the best arm without tuning that is worth it: 0.05 is five points."""
    hosted: Path | None = None
    """Answers of a hosted model, one `{"item": ID, "answer": TEXT}` a line; ids and questions stand in the run's items.jsonl."""
    prices: Path | None = None
    """A YAML file of prices, with the keys of the options below."""
    money: Prices = field(default_factory=Prices)
    remote: HostedConfig = field(default_factory=HostedConfig)
    rows: DataConfig = field(default_factory=lambda: DataConfig(held_out=0.2))
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    pilot: PilotConfig = field(default_factory=PilotConfig)
    train: SftConfig = field(default_factory=SftConfig)

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise ConfigError(f"minutes is {self.minutes}; give a time above 0.")
        if self.wish is not None and not 0 < self.wish <= 1:
            raise ConfigError(f"wish is {self.wish}; it is a share above 0 and at most 1, such as 0.9.")
        if not 0 < self.gain < 1:
            raise ConfigError(f"gain is {self.gain}; it is a share between 0 and 1, such as 0.05.")
        if self.rows.held_out == 0:
            raise ConfigError("held_out is 0, and without items to ask nothing can be decided. Give a share such as --held-out 0.2.")
        if self.train.max_steps is not None:
            raise ConfigError("max_steps has no meaning here: the steps of the pilot's trainings are `steps`.")
        if self.train.eval_every:
            raise ConfigError("eval_every has no meaning here: the pilot's trainings are measured when they are done.")
        if self.train.selects:
            raise ConfigError("keep_best and patience have no meaning here: the pilot's trainings all have the same number of steps.")
        if self.hosted is not None and self.remote.hosted_url is not None:
            raise ConfigError("hosted names a file of answers, and hosted_url a server to ask. Give one of them.")
        if (self.hosted or self.remote.hosted_url) and self.money.hosted_rate is not None:
            raise ConfigError("hosted_rate is what to name where a hosted model's answers are not at hand; they are, so leave it out.")


@dataclass(frozen=True)
class DecideResult:
    """The answer and what it rests on."""

    path: Path
    decision: Decision
    record: dict[str, Any]
    """The content of `decision.json`."""
    seconds: float

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.path / "report.html"

    def summary(self) -> dict[str, Any]:
        """For machines."""
        return {**self.record, "run": str(self.path), "report": str(self.report), "seconds": round(self.seconds, 1)}

    def __str__(self) -> str:
        return f"{self.decision.text}\n{self.report}"

    def _repr_html_(self) -> str:
        return html_fragment(self.path)


def decide(config: DecideConfig, *, screen: Screen | None = None, hosted: Sampler | None = None) -> DecideResult:
    """Measure and answer. `hosted` is asked every item as one more arm. Raises a `SapwoodError` that says what to do."""
    began, screen = time.monotonic(), screen or Screen(quiet=True)
    if not config.data:
        raise ConfigError("No data is named. Give a file of conversations: sapwood decide my.jsonl")
    if hosted is not None and (config.hosted or config.remote.hosted_url):
        raise ConfigError("A hosted model's answers or its server are named, and a sampler was handed over, too. Give one of them.")
    prices = prices_from(config.prices, config.money)
    with screen.progress("reading") as advance:
        rows = scan_files(config.data, config.rows, advance)
    folder = fetch_model(config.model, screen)
    chat = load_chat(folder, config.template, day_of(config.out), tools_in_system=config.tools_in_system)
    screen.title("Rows")
    prepared = prepare(rows, chat, config.rows, screen)
    screen.lines([*prepared.notes, *prepared.ledger.lines_for_people()])

    with open_run(config.out or new_run_path(Path("runs"), f"decide-{Path(config.data[0]).stem}")) as run:
        _claim(run, config, chat, folder, prepared)
        screen.say(f"Run directory: {run.path}")
        _write_ledger(run, prepared)
        items = items_from(conversations_among(prepared.held_out), cluster=config.rows.cluster, reference=config.rows.reference)
        run.clear("items")
        run.append("items", *item_records(items))
        steps = num_steps(len(prepared.examples), config.train.batch, config.train.epochs)
        found = Findings(items, len(prepared.examples), config.gain, config.wish, prices, fewest_rows(config.pilot.sizes), steps)
        work = _Work(config, folder, chat, prepared, run, screen, began + 60 * config.minutes, hosted)
        decision, scorer = _measure(work, found)
        record = decision_record(found, decision, scorer)
        run.write_json("decision", record)
        write_report(run.path)
    return DecideResult(run.path, decision, record, time.monotonic() - began)


def _claim(run: Run, config: DecideConfig, chat: Chat, folder: Path, prepared: Prepared) -> None:
    """Make the directory this decision's own. Raises `CheckpointError` if it holds something else, whose scores are not ours."""
    if (run.path / "config.yaml").exists() and not (run.path / "identity.json").exists():
        raise CheckpointError(f"{run.path} holds another run. Choose another folder with --out.")
    settings = {key: value for key, value in to_dict(config).items() if key not in MAY_CHANGE} | {"steps": config.pilot.steps}
    rows = hash_of([hash_of_rows(prepared.examples), hash_of_rows(prepared.held_out_examples)])
    claim(
        run,
        {"kind": "decision", "settings": hash_of(settings), "rows": rows, "template": chat.fingerprint, "model": hash_of_weights(folder)},
    )
    save_yaml(replace(config, out=run.path), run.path / "config.yaml")


def _write_ledger(run: Run, prepared: Prepared) -> None:
    run.clear("ledger")
    records = prepared.ledger.records()
    while batch := list(itertools.islice(records, RECORDS_A_WRITE)):
        run.append("ledger", *batch)


def config_for(names: Sequence[str]) -> DecideConfig:
    """The config that options are laid over: of a decision to go on with, or of files."""
    run = run_named(names)
    if run is None:
        return DecideConfig(data=tuple(names))
    require_known(run)
    if read_json(run / "identity.json").get("kind") != "decision":
        raise ConfigError(f"{run} holds another run, not a decision. Name files of rows, or the directory of a decision.")
    return replace(load_yaml(DecideConfig, run / "config.yaml"), out=run)


@dataclass(frozen=True)
class _Work:
    """What the parts of a decision share."""

    config: DecideConfig
    folder: Path
    chat: Chat
    prepared: Prepared
    run: Run
    screen: Screen
    deadline: float
    """Of the pilot, on the monotonic clock."""
    hosted: Sampler | None


def _measure(work: _Work, found: Findings) -> tuple[Decision, str]:
    """Ask, train, ask; `found` is filled. (the answer, the scorer's name)"""
    config, prepared, screen = work.config, work.prepared, work.screen
    guess = scorer_for(config.evaluation, found.items)
    screen.say(guess.why)
    if guess.scorer is None:
        return _unjudged(guess.why), guess.name
    train_items = items_from(conversations_among(prepared.train, LOOKED_UP), cluster=config.rows.cluster, reference=config.rows.reference)
    found.form = form_of(guess.name, train_items, found.items)
    found.tokens_out = mean(_trained(example) for example in prepared.held_out_examples)
    given = read_answers(config.hosted, found.items) if config.hosted is not None else None  # before anything is asked
    arms = Arms(found.items, train_items, work.chat, guess.scorer, config.evaluation, work.run, screen)

    screen.title("What needs no tuning")
    found.add(_untuned(work, arms, given))
    early = before_pilot(found.evidence())
    if early is not None:
        return early, guess.name

    screen.title("Pilot")
    pilot = Pilot(
        config=config.pilot,
        train=config.train,
        folder=work.folder,
        dtype=config.dtype,
        chat=work.chat,
        examples=prepared.examples,
        arms=arms,
        seed=config.rows.split_seed,
        deadline=work.deadline,
        answering=sum(score.seconds for score in found.scores[PLAIN]),
    )
    found.points = pilot.run()
    found.missing_seconds = pilot.missing_seconds
    names = {point.arm for point in found.points}
    found.add(scores_from(record for record in work.run.read("scores") if record["arm"] in names))
    return after_pilot(found.evidence()), guess.name


def _untuned(work: _Work, arms: Arms, answers: dict[str, Answer] | None) -> list[ArmScore]:
    """The arms that need no tuning, a hosted model's included: its server is asked before anything is loaded."""
    remote = work.config.remote.remote(work.run.path)
    hosted = ask_hosted(remote, arms, work.run) if remote is not None else []
    model = load_model(work.folder, work.config.dtype)
    chat = work.chat
    for note in (*model.notes, *chat.notes, *chat.warnings, *learn_tokens(model, chat.new_tokens.values(), chat.known_tokens.values())):
        work.screen.say(note)
    kernels.prepare(model.dtype, work.screen.say)
    write_environment(work.run, work.folder, model, chat, work.prepared)
    scores = arms.free() + arms.base(Engine(model, chat)) + hosted
    if work.hosted is not None:
        scores += arms.one(HOSTED, work.hosted)
    elif answers is not None:
        given = hosted_arm(answers, arms.items, arms.scorer)
        missing = len(arms.items) - len(given)
        work.screen.say(f"{HOSTED}: {len(given)} answers read" + (f", {missing} items are without one" if missing else ""))
        scores += given
    return scores


def _unjudged(why: str) -> Decision:
    steps = ("Name a --scorer that can judge your answers, or a --reference column, and decide again.",)
    return Decision("not yet", f"nothing can say whether an answer is right. {why}", (), steps)


def _trained(example: Example) -> int:
    return sum(int((row.weights_T > 0).sum()) for row in example.rows)
