"""`sapwood dpo`: from a file of preferred answers to a model that prefers them too, or does not.

In: files of pairs (prompt, chosen, rejected), or of answers with a vote. Out: a run directory with ledger, adapter and a verdict on
held-out pairs: how often the model now prefers what people preferred, with an interval.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat, coloured
from sapwood.errors import ConfigError, DataError
from sapwood.evaluate.preference_verdict import evaluations, preference_verdict
from sapwood.model import LanguageModel
from sapwood.recipes.beginning import RunConfig, begin, opened, write_ledger
from sapwood.recipes.chain import environment_of
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.learning_course import PREFERENCES
from sapwood.recipes.learning_live import Told, watching_learning
from sapwood.recipes.other_rows import Sides, pairs_to_prefer, scan, votes_to_learn
from sapwood.recipes.other_rows import refuse_unread as refuse_unread_rows
from sapwood.recipes.reporting import page_kept, write_page
from sapwood.recipes.screen import Screen
from sapwood.records import Example, hash_of_rows
from sapwood.run import Run, step_records
from sapwood.train.dpo import DpoConfig, DpoResult, dpo, refuse_unread
from sapwood.train.preferred import PreferenceStep, vote_examples


@dataclass(frozen=True, kw_only=True)
class PreferConfig(RunConfig):
    """Preference tuning with its proof."""

    votes: str | None = None
    """Column that says whether an answer is good, for files of single answers with a vote (KTO) instead of pairs."""
    train: DpoConfig = field(default_factory=DpoConfig)

    def __post_init__(self) -> None:
        refuse_unread(self.train, self.votes is not None)


@dataclass(frozen=True)
class PreferResult:
    """What a finished run leaves."""

    path: Path
    line: str
    """The verdict in one sentence."""
    training: DpoResult
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
        """The result for machines; rates are shares of 1."""
        before, after = self.training.before, self.training.after
        return {
            "line": self.line,
            "run": str(self.path),
            "report": str(self.report),
            "steps": self.training.steps,
            "before": before.record() if before else None,
            "after": after.record() if after else None,
            "row_tokens": self.training.row_tokens,
            "unique_tokens": self.training.unique_tokens,
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        return f"{self.line}\n{self.adapter}"


def prefer(config: PreferConfig, *, screen: Screen | None = None) -> PreferResult:
    """Tune on preferences and judge held-out ones. Raises a `SapwoodError` that says what to do; what was finished stays."""
    began, screen = time.perf_counter(), screen or Screen(quiet=True)
    refuse_unread_rows(config.rows, "dpo", "choosing", "reference")
    rows = scan(config.data, config.rows, screen)
    start = opened(config.start_from, DEFAULT_MODEL, config.out, screen)
    sides = _sides(rows, start.chat, config)
    run, config = begin(replace(config, start_from=start.config), "dpo", [f"train.{name}" for name in config.train.may_change], screen)
    with run:
        hashes = hash_of([hash_of_rows(sides.train), hash_of_rows(sides.held_out)])
        claim(run, {"rows": hashes, "template": start.chat.fingerprint, "model": hash_of_weights(start.folder, start.adapter)})
        write_ledger(run, sides.ledger, sides.notes, screen)
        if not sides.train:
            raise DataError("There is nothing to train on: no row is left. The ledger above says where they went.")
        screen.say("One example; what is trained stands on green, the preferred answer first:" if not config.votes else "One vote:")
        screen.show(coloured(min(sides.train[:50], key=lambda one: one.length), start.chat, colour=screen.console.color_system is not None))
        with page_kept(run, screen):
            screen.title("Model")
            model = start.load(screen)
            run.write_json("environment", environment_of(start.folder, model, start.chat))
            screen.title("Training")
            screen.say(_what_is_seen(config))
            result = _learn(config, model, sides, run, screen, start.chat)
            seen = evaluations(step_records(run.path / "metrics.jsonl"))
            verdict = preference_verdict(seen, result.steps, votes=config.votes is not None)
            run.write_json("verdict", verdict.to_dict())
        return PreferResult(run.path, verdict.line, result, time.perf_counter() - began)


def _learn(config: PreferConfig, model: LanguageModel, sides: Sides[Example], run: Run, screen: Screen, chat: Chat) -> DpoResult:
    """The loop, watched; the run's page is written anew at each evaluation."""
    with watching_learning(screen, run, PREFERENCES) as watch:

        def observe(step: int, current: LanguageModel) -> None:
            watch.evaluated(step)
            if step:
                write_page(run, screen)

        def report(done: PreferenceStep) -> None:
            watch.stepped(done.step, done.num_steps, done.seconds, Told(line_of(done)))

        return dpo(
            model,
            sides.train,
            sides.held_out,
            config.train,
            run,
            report=report,
            observe=observe,
            say=screen.say,
            beside=chat.saved_files(),
        )


def _sides(rows: Any, chat: Chat, config: PreferConfig) -> Sides[Example]:
    if config.votes is None:
        return pairs_to_prefer(rows, chat, config.rows)
    found = votes_to_learn(rows, chat, config.rows, config.votes)
    good = [vote for _, vote in found.train]
    if len(set(good)) < 2:
        raise ConfigError(f"All {len(good)} votes of `{config.votes}` say the same, so there is nothing to tell apart. Give both kinds.")
    made = [
        vote_examples([example for example, _ in side], [vote for _, vote in side], config.train.seed) if len(side) > 1 else []
        for side in (found.train, found.held_out)
    ]
    bad = len(good) - sum(good)
    ratio = config.train.good_weight * sum(good) / (config.train.bad_weight * bad)
    notes = list(found.notes)
    if len(found.held_out) == 1:
        notes.append("One vote alone is held out, and a vote is compared with others: nothing judges. Hold out more with --held-out.")
    if not 0.5 <= ratio <= 2:
        notes.append(
            f"{sum(good)} good and {bad} bad votes: weighed, {ratio:.2g} to 1. KTO's paper keeps this within 1 to 1.33; "
            f"--bad-weight {config.train.good_weight * sum(good) / bad:.2g} would bring it to 1."
        )
    return Sides(made[0], made[1], found.ledger, notes)


def _what_is_seen(config: PreferConfig) -> str:
    if config.votes:
        return "The loss begins near 0.5. What counts is the reward of good answers above that of bad ones, and the held-out accuracy."
    if config.train.loss == "ipo":
        return "What counts is the margin, which ipo draws towards a bound, and the held-out accuracy."
    return "The loss begins at 0.693 (log 2): the policy is the reference. What counts is the margin, and the held-out accuracy."


def line_of(done: PreferenceStep) -> str:
    """One step in a log."""
    words = f"step {done.step}/{done.num_steps}  loss {done.loss:.3f}  right {done.accuracy:.0%}  margin {done.margin:+.3f}"
    words += f"  chosen {done.chosen:+.3f}  rejected {done.rejected:+.3f}"
    if done.kl:
        words += f"  divergence {done.kl:.2f}"
    return f"{words}  {done.row_tokens / done.seconds:,.0f} tokens/s, {1 - done.unique_tokens / done.row_tokens:.0%} saved by sharing"
