"""`sapwood distill`: a teacher's answers to your prompts, of which only the right ones are kept, as rows to imitate.

In: prompts with what is right (files, or a task of reasoning-gym), a teacher (a server, a model, or a run of your own: then this is
rejection sampling), and rewards. Out: `rows.jsonl` of conversations with reasoning and answer apart, which `sapwood sft` trains, and
what was left out, counted by reason. A stopped run goes on with the prompts that are not answered yet.
DeepSeek-R1, arXiv:2501.12948, §2.3.3 (rejection sampling) and §2.4 (distillation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sapwood.assets import DEFAULT_MODEL
from sapwood.errors import ConfigError, DataError
from sapwood.evaluate.rewards import Reward, judge_by
from sapwood.generate import Engine
from sapwood.recipes.beginning import RunConfig, begin, opened, write_ledger
from sapwood.recipes.hosted import HostedConfig
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.other_rows import prompts_to_ask, refuse_unread, scan
from sapwood.recipes.reinforce import TaskConfig, gym_sides, rewards_named
from sapwood.recipes.reward_model import told_apart
from sapwood.recipes.screen import Screen
from sapwood.records import Completion, Ended, Message, Rewarded, Sampler, SamplingParams
from sapwood.remote import RemoteSampler
from sapwood.run import Run
from sapwood.train import Asked
from sapwood.train.rollouts import refuse_silence, seed_of

AT_ONCE = 16
"""Prompts that are asked together: what was answered of them is kept together, too."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(RunConfig):
    """Answers of a teacher, of which the right ones become rows."""

    rewards: tuple[str, ...] = ()
    """Rewards by name, as for `sapwood grpo`; the first one says which answers are right. `gym` where a task is named."""
    allow_code: bool = False
    """Let rewards run programs that the teacher wrote, in a locked-down child process."""
    samples: int = 4
    """Answers a prompt that the teacher gives."""
    keep: int = 1
    """Right answers a prompt that become rows at most, the best rewarded first and the shortest of equals; no two of the same text."""
    temperature: float = 0.7
    """Of the teacher's sampling; 0 gives one and the same answer."""
    max_new_tokens: int = 1024
    """Longest answer, in tokens; one that is cut is never kept."""
    seed: int = 0
    """Seed of what is sampled."""
    gym: TaskConfig = field(default_factory=lambda: TaskConfig(unseen=0))
    hosted: HostedConfig = field(default_factory=HostedConfig)

    def __post_init__(self) -> None:
        for name in ("samples", "keep", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}; give 0 or more.")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(f"temperature is 0, so all {self.samples} samples would be the same. Give --samples 1, or a temperature.")


@dataclass(frozen=True)
class DistillResult:
    """What was kept."""

    path: Path
    rows: Path
    """Conversations to imitate."""
    prompts: int
    answered: int
    """Prompts with at least one row."""
    kept: int
    left_out: dict[str, int]
    """Answers that became no row, by reason."""

    @property
    def line(self) -> str:
        """For people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "none"
        return f"{self.kept} rows of {self.answered} of {self.prompts} prompts; left out: {reasons}."

    def summary(self) -> dict[str, Any]:
        """For machines."""
        return {
            "line": self.line,
            "rows": str(self.rows),
            "prompts": self.prompts,
            "answered": self.answered,
            "kept": self.kept,
            "left_out": self.left_out,
        }


def distill(
    config: DistillConfig, *, screen: Screen | None = None, teacher: Sampler | None = None, rewards: Sequence[Reward] = ()
) -> DistillResult:
    """Ask the teacher, judge, keep what is right. `teacher` is any sampler; where none is given, the config says who it is.

    Raises a `SapwoodError` that says what to do, also where a teacher answers nothing any more: what was answered stays in the run
    directory, and what was not is asked again when the run goes on.
    """
    screen = screen or Screen(quiet=True)
    judged_by = [*rewards_named(config.rewards, config.gym, config.data, config.allow_code, bool(rewards)), *rewards]
    refuse_unread(config.rows, "distill, which asks every prompt,", "choosing", "cluster", "split_seed", task=config.gym.task)
    rows = scan(config.data, config.rows, screen) if config.gym.task is None else None
    start = opened(config.start_from, DEFAULT_MODEL, config.out, screen)
    sides = prompts_to_ask(rows, start.chat, config.rows) if rows is not None else gym_sides(config.gym, start.chat)
    asked = [*sides.train, *sides.held_out]
    if not asked:
        raise DataError("There is nothing to ask: no prompt is left.")
    run, config = begin(config, "distill", (), screen)
    with run:
        ids = [one.item.id for one in asked]
        claim(
            run,
            {
                "prompts": hash_of(ids),
                "rewards": hash_of(told_apart(config.rewards)),
                "model": hash_of_weights(start.folder, start.adapter),
            },
        )
        if rows is not None:
            write_ledger(run, sides.ledger, sides.notes, screen)
        remote = config.hosted.remote(run.path)
        sampler = teacher or (RemoteSampler(remote) if remote is not None else Engine(start.load(screen), start.chat))
        done = {record["item"] for record in run.read("answers")}
        missing = [one for one in asked if one.item.id not in done]
        judge = judge_by(judged_by, say=screen.say)
        with screen.progress("asking the teacher") as advance:
            for first in range(0, len(missing), AT_ONCE):
                some = missing[first : first + AT_ONCE]
                every = [one for one in some for _ in range(config.samples)]
                seed = seed_of(config.seed, asked.index(some[0]))
                params = SamplingParams(max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed)
                answers = sampler.generate([one.prompt for one in every], params)
                refuse_silence(answers)
                judged = judge([one.item for one in every], answers)
                made = [_record(one, answers[slice_], judged[slice_], config.keep) for one, slice_ in _slices(some, config.samples)]
                run.append("answers", *made)
                advance(len(done) + first + len(some), len(asked), "")
        return _conclude(run, len(asked))


def _slices(some: Sequence[Asked], samples: int) -> list[tuple[Asked, slice]]:
    return [(one, slice(place * samples, (place + 1) * samples)) for place, one in enumerate(some)]


def _record(one: Asked, answers: Sequence[Completion], judged: Sequence[Rewarded], keep: int) -> dict[str, Any]:
    """What became of the answers to one prompt: the rows that are kept, and why the others are not."""
    left_out: Counter[str] = Counter()
    right: list[tuple[float, int, int]] = []
    for place, (answer, rewarded) in enumerate(zip(answers, judged, strict=True)):
        why = _fault(answer, rewarded)
        if why:
            left_out[why] += 1
        else:
            right.append((-(rewarded.total or 0.0), len(answer.ids) or len(answer.text), place))
    rows: list[dict[str, Any]] = []
    texts: set[str] = set()
    for reward, _, place in sorted(right):
        text = " ".join(answers[place].text.split())
        if text in texts:
            left_out["the same as another"] += 1
        elif len(rows) == keep:
            left_out["more than are kept"] += 1
        else:
            texts.add(text)
            rows.append({**_row(one, answers[place]), "reward": -reward})
    return {"item": one.item.id, "rows": rows, "left_out": dict(left_out)}


def _fault(answer: Completion, rewarded: Rewarded) -> str:
    if answer.ended is Ended.ERROR:
        return "failed"
    if answer.ended is Ended.LENGTH:
        return "cut at the limit"
    if rewarded.solved is None:
        return "not judged"
    return "" if rewarded.solved else "wrong"


def _row(one: Asked, answer: Completion) -> dict[str, Any]:
    """A conversation as files hold it: reasoning, answer and calls apart where they were understood."""
    said = answer.message or Message("assistant", answer.text)
    turn = (said if said.reasoning else replace(said, reasoning=None)).for_template()
    asked = one.item.conversation
    row: dict[str, Any] = {"messages": [*(message.for_template() for message in asked.messages), turn], "source": asked.where}
    return {**row, "tools": list(asked.tools)} if asked.tools else row


def _conclude(run: Run, prompts: int) -> DistillResult:
    """Write the rows of all sittings anew, in the order in which they were answered."""
    records = run.read("answers")
    rows = [row for record in records for row in record["rows"]]
    run.clear("rows")
    if rows:
        run.append("rows", *rows)
    left_out: Counter[str] = Counter()
    for record in records:
        left_out.update(record["left_out"])
    return DistillResult(
        run.path, run.path / "rows.jsonl", prompts, sum(bool(record["rows"]) for record in records), len(rows), dict(left_out.most_common())
    )
