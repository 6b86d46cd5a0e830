"""`sapwood grpo`: from prompts and rewards to a model that earns more of them, and the proof that it solves more than before.

In: files of prompts with what is right, or a task of reasoning-gym; rewards by name. Out: a run directory with ledger, adapter, the best
and worst answers of every step, and a verdict: greedy answers to held-out prompts before and after, with their difference's interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil
import yaml

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.data import Ledger
from sapwood.errors import ConfigError, DataError
from sapwood.evaluate.environments import Environment, earned
from sapwood.evaluate.grpo_signs import signs
from sapwood.evaluate.gym import gym_items, verified
from sapwood.evaluate.items import item_records
from sapwood.evaluate.rewards import Reward, judge_by, reward_named
from sapwood.evaluate.tool_turns import Tool
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.recipes.beginning import Opened, RunConfig, begin, opened, write_ledger
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.judge_reward import JudgeRewardConfig
from sapwood.recipes.other_rows import Sides, prompts_to_ask, refuse_unread, scan
from sapwood.recipes.playing import Play, PlayConfig, play_of
from sapwood.recipes.preflight import preflight
from sapwood.recipes.reward_model import rewards_of_models, told_apart
from sapwood.recipes.screen import Screen
from sapwood.records import Judge, Sampler, SamplingParams
from sapwood.records.protocols import release
from sapwood.run import Run, read_json, step_records
from sapwood.stats import Difference, paired_difference
from sapwood.train.grpo import GrpoConfig, GrpoResult, grpo
from sapwood.train.grpo_report import GrpoStep
from sapwood.train.rollouts import Asked, Rollouts

CACHE_SHARE = 4
"""Keys and values of sampling may take one part in so many of the free memory; the bytes are kept in the run: answers depend on them."""

ABOUT_THE_LOSS = (
    "The loss is near 0 by construction: advantages of a group add up to 0, and the policy is the one that sampled. Its gradient "
    "is not. Watch the reward, its spread within groups, and what is solved."
)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task of reasoning-gym instead of files: its instances, and its own verifier as the reward `gym`."""

    task: str | None = None
    """Its name, such as chain_sum."""
    settings: tuple[str, ...] = ()
    """Its settings, such as `min_terms=3 max_terms=5`."""
    instances: int = 1000
    """Different instances to learn from."""
    unseen: int = 200
    """Instances of another seed that judge; none of them is learned from."""
    instruction: str = ""
    """A line behind each question, such as how to answer."""

    @property
    def values(self) -> dict[str, Any]:
        """The settings as the task takes them. Raises `ConfigError`."""
        found = {}
        for entry in self.settings:
            name, equals, value = entry.partition("=")
            if not (name and equals and value):
                raise ConfigError(f"settings holds {entry!r}; give name=value, such as min_terms=3.")
            try:
                found[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise ConfigError(
                    f"settings holds {entry!r}, whose value cannot be read; give one such as 3, 0.5, true or [1, 2]."
                ) from None
        return found


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(RunConfig):
    """Reinforcement learning with its proof."""

    rewards: tuple[str, ...] = ()
    """Rewards by name, such as `number format*0.1`; the first says what is solved. `gym` where a task is named and nothing else."""
    allow_code: bool = False
    """Let rewards run programs that the model wrote, in a locked-down child process."""
    preflight: int = 16
    """Prompts that are tried before step 1, to see what the rewards make of the answers; 0 tries none."""
    gym: TaskConfig = field(default_factory=TaskConfig)
    play: PlayConfig = field(default_factory=PlayConfig)
    judge: JudgeRewardConfig = field(default_factory=JudgeRewardConfig)
    train: GrpoConfig = field(default_factory=GrpoConfig)


@dataclass(frozen=True)
class ReinforceResult:
    """What a finished run leaves."""

    path: Path
    line: str
    """The verdict in one sentence."""
    difference: Difference | None
    """Of held-out greedy answers, after less before; None where nothing is held out."""
    training: GrpoResult
    seconds: float

    @property
    def adapter(self) -> Path:
        """The trained adapter (or the whole model)."""
        adapter = self.path / "adapter"
        return adapter if adapter.is_dir() else self.path / "model"

    def summary(self) -> dict[str, Any]:
        """The result for machines; rates are shares of 1."""
        found = self.difference
        return {
            "line": self.line,
            "run": str(self.path),
            "steps": self.training.steps,
            "prompts_asked": self.training.taken,
            "difference": found.mean if found else None,
            "interval": [found.interval.low, found.interval.high] if found else None,
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        return f"{self.line}\n{self.adapter}"


def reinforce(
    config: ReinforceConfig,
    *,
    screen: Screen | None = None,
    rewards: Sequence[Reward] = (),
    tools: Sequence[Tool] = (),
    environment: Callable[[], Environment] | None = None,
) -> ReinforceResult:
    """Learn from rewards: those that `config` names, then `rewards` (functions of the caller's own); likewise tools and an environment.

    Raises a `SapwoodError` that says what to do; what was finished stays in the run directory.
    """
    began, screen, play = time.perf_counter(), screen or Screen(quiet=True), play_of(config.play, tools, environment)
    judge = judge_by(_judges(config, rewards, play, screen), say=screen.say)
    refuse_unread(config.rows, "grpo", "choosing", task=config.gym.task)
    rows = scan(config.data, config.rows, screen) if config.gym.task is None else None
    start = opened(config.start_from, DEFAULT_MODEL, config.out, screen)
    sides = prompts_to_ask(rows, start.chat, config.rows) if rows is not None else gym_sides(config.gym, start.chat)
    sides = replace(sides, train=play.offered(sides.train, start.chat), held_out=play.offered(sides.held_out, start.chat))
    run, config = begin(
        replace(config, start_from=start.config), "grpo", ["preflight", *(f"train.{name}" for name in config.train.may_change)], screen
    )
    try:
        _write_down(run, config, start, sides, screen, ledger=rows is not None)
        screen.title("Model")
        model = start.load(screen)
        play.refuse_unlike(config.train.policy, shares_prefixes=model.shares_prefixes)
        memory = cache_memory(run)

        def sampler_of(current: LanguageModel) -> Sampler:
            return play.around(Engine(current, start.chat, memory=memory), [*sides.train, *sides.held_out], start.chat)

        seen: dict[int, list[float | None]] = {}
        _preflight(sides.train, sampler_of(model), judge, config, run, screen)
        screen.title("Training")
        screen.say(ABOUT_THE_LOSS)

        def observe(step: int, current: LanguageModel) -> None:
            if sides.held_out:
                seen[step] = _examined(sampler_of(current), sides.held_out, judge, config, step, run, screen)

        result = grpo(
            model,
            sides.train,
            judge,
            sampler_of,
            config.train,
            run,
            longest=play.longest(config.train.max_new_tokens),
            context=start.chat.context_length,
            report=_Reporter(run, screen),
            observe=observe,
            say=screen.say,
            beside=start.chat.saved_files(),
        )
        difference, line = _verdict(run, config.train.steps, seen)
        run.write_json("verdict", {"line": line, "difference": difference.mean if difference else None})
        return ReinforceResult(run.path, line, difference, result, time.perf_counter() - began)
    finally:
        run.close()


def _judges(config: ReinforceConfig, rewards: Sequence[Reward], play: Play, screen: Screen) -> list[Reward]:
    """All that judges: rewards by name, the caller's own, the judge, and what an environment says was earned."""
    judging = config.judge.reward(screen)
    others = [*rewards, *([judging] if judging is not None else [])]
    own = {"environment": Reward("environment", batch=earned)} if play.environment is not None else {}
    return [*rewards_named(config.rewards, config.gym, config.data, config.allow_code, bool(others), own), *others]


def _write_down(run: Run, config: ReinforceConfig, start: Opened, sides: Sides[Asked], screen: Screen, *, ledger: bool) -> None:
    """What the run is made of, before anything is asked. Raises `DataError` where no prompt is left, `CheckpointError` for another run."""
    items = [[one.item.id, one.prompt.ids, dict(one.item.meta)] for one in (*sides.train, *sides.held_out)]
    weights = hash_of_weights(start.folder, start.adapter)
    claim(
        run, {"rows": hash_of(items), "template": start.chat.fingerprint, "model": weights, "rewards": hash_of(told_apart(config.rewards))}
    )
    if ledger:
        write_ledger(run, sides.ledger, sides.notes, screen)
    run.clear("items")
    if sides.held_out:
        run.append("items", *item_records([one.item for one in sides.held_out]))
    if not sides.train:
        raise DataError("There is nothing to ask: no prompt is left. The ledger above says where they went.")


def _preflight(asked: Sequence[Asked], sampler: Sampler, judge: Judge, config: ReinforceConfig, run: Run, screen: Screen) -> None:
    """Try a few prompts, unless the run has begun already. Raises `TrainingError` where nothing could be learned."""
    if not config.preflight or any((run.path / "checkpoints").glob("step-*")):
        return
    screen.title("Preflight")
    found = preflight(asked, sampler, judge, config.train, prompts=config.preflight, say=screen.say)
    run.write_json("preflight", {key: value for key, value in vars(found).items() if key != "example"})


def rewards_named(
    names: Sequence[str],
    gym: TaskConfig,
    data: Sequence[str],
    allow_code: bool,
    others: bool,
    own: Mapping[str, Reward] = MappingProxyType({}),
) -> list[Reward]:
    """The rewards by name; that of `own`, or the task's verifier, where no reward is named. Raises `ConfigError` where nothing judges."""
    if gym.task is not None and data:
        raise ConfigError("Files and a task of reasoning-gym are both named. Give one of them: a run learns from one kind.")
    for name in ("settings", "instruction"):
        if gym.task is None and getattr(gym, name):
            raise ConfigError(f"gym.{name} is given, but no task that would read it. Name one with --task, or leave gym.{name} out.")
    own = {**own, **({"gym": Reward("gym", verified(gym.task, gym.values))} if gym.task is not None else {})}
    names = names or tuple(own)[:1]
    if gym.task is None and not data:
        raise ConfigError("No data is named. Give files of prompts, or a task: --task chain_sum")
    if not names and not others:
        raise ConfigError(
            "No reward is named, so no answer is better than another. Name some, such as --rewards number format*0.1; docs/rewards.md "
            "lists them."
        )
    own |= rewards_of_models(names)
    return [reward_named(name, own, allow_code=allow_code) for name in names]


def gym_sides(gym: TaskConfig, chat: Chat) -> Sides[Asked]:
    """Instances of the task to learn from, and others that judge."""
    assert gym.task is not None
    test = gym_items(gym.task, gym.unseen, seed=1, settings=gym.values, instruction=gym.instruction) if gym.unseen else []
    train = gym_items(gym.task, gym.instances, seed=2, settings=gym.values, instruction=gym.instruction, exclude=test)
    made = [[Asked(item, chat.prompt(item.conversation.messages)) for item in side] for side in (train, test)]
    return Sides(made[0], made[1], Ledger(0, 0), [])


def cache_memory(run: Run) -> int:
    """Bytes for keys and values, the same in every sitting: how many answers run at once must not depend on the machine's day."""
    file = run.path / "sampler.json"
    if not file.is_file():
        run.write_json("sampler", {"memory": int(psutil.virtual_memory().available) // CACHE_SHARE})
    return int(read_json(file)["memory"])


def _examined(
    sampler: Sampler, held_out: Sequence[Asked], judge: Judge, config: ReinforceConfig, step: int, run: Run, screen: Screen
) -> list[float | None]:
    """What the first reward makes of greedy answers to held-out prompts; recorded, and said."""
    with screen.progress("answering held-out prompts"):
        answers = sampler.generate([one.prompt for one in held_out], SamplingParams(max_new_tokens=config.train.max_new_tokens))
    release(sampler)
    rewarded = judge([one.item for one in held_out], answers)
    first = [next(iter(one.parts.values())) for one in rewarded]
    judged = [value for value in first if value is not None]
    mean = float(np.mean(judged)) if judged else None
    run.append(
        "metrics", {"kind": "eval", "step": step, "reward": mean, "values": first, "length": float(np.mean([len(a.ids) for a in answers]))}
    )
    when = f"step {step}" if step else "before"
    screen.say(f"{when}: {'–' if mean is None else f'{mean:.1%}'} on {len(judged)} held-out prompts (greedy)", style="bold")
    return first


class _Reporter:
    """Lines of the steps, the best and the worst answer now and then, and alarms, each once."""

    def __init__(self, run: Run, screen: Screen) -> None:
        self._run, self._screen = run, screen
        self._told: set[str] = set()
        self._since = 0.0

    def __call__(self, done: GrpoStep, rollouts: Rollouts) -> None:
        self._screen.say(line_of(done))
        if done.step == 1 and done.num_steps > 1:
            minutes = done.seconds * (done.num_steps - 1) / 60
            self._screen.say(f"The other {done.num_steps - 1} steps will take about {minutes:.0f} minutes.")
        self._since += done.seconds
        if self._since > 60 or done.step in (1, done.num_steps):
            self._since = 0.0
            self._show(rollouts)
        records = [record for record in step_records(self._run.path / "metrics.jsonl") if record["kind"] == "train"]
        for sign in signs(records):
            if sign.kind not in self._told:
                self._told.add(sign.kind)
                self._screen.say(str(sign), style="yellow")

    def _show(self, rollouts: Rollouts) -> None:
        every = [
            (value, group, place) for group in rollouts.groups for place, value in enumerate(group.rewards_G.tolist()) if np.isfinite(value)
        ]
        if not every:
            return
        for name, pick in (("best", max), ("worst", min)):
            value, group, place = pick(every, key=lambda one: one[0])
            text = " ".join(group.completions[place].text.split())
            self._screen.say(f"{name} ({value:g}): {text[:160]}{'…' if len(text) > 160 else ''}", style="dim")


def line_of(done: GrpoStep) -> str:
    """One step in a log."""
    words = f"step {done.step}/{done.num_steps}  reward {done.reward:.3f} (spread {done.spread:.3f})  solved {done.solved:.0%}"
    words += f"  {done.length:.0f} tokens, {done.cut:.0%} cut" + (f" ({done.outgrown:.0%} by the context)" if done.outgrown else "")
    words += f"  entropy {done.entropy:.2f}" if np.isfinite(done.entropy) else "  nothing to learn from"
    words += f"  kl {done.kl:.3f}" if done.kl else ""
    words += f"  clipped {done.clipped:.1%}" if done.clipped > 0 else ""
    words += (
        f"  dead {done.dead:.0%}" + (f" ({done.resampled} drawn anew)" if done.resampled else "") if done.dead or done.resampled else ""
    )
    words += f"  unjudged {done.unjudged:.0%}" if done.unjudged else ""
    return words + (
        f"  {done.seconds:.1f} s: sampling {done.sampling_seconds:.1f}, rewards {done.reward_seconds:.1f}, "
        f"log-probs {done.logprob_seconds:.1f}, update {done.update_seconds:.1f}"
    )


def _verdict(run: Run, steps: int, seen: dict[int, list[float | None]]) -> tuple[Difference | None, str]:
    """From the held-out answers before and after, those of earlier sittings included."""
    values = {record["step"]: record["values"] for record in step_records(run.path / "metrics.jsonl") if record["kind"] == "eval"} | seen
    if 0 not in values or steps not in values:
        return None, "Trained. Nothing was held out, so nothing is said about whether it helped."
    both = [(a, b) for a, b in zip(values[0], values[steps], strict=True) if a is not None and b is not None]
    if not both:
        return None, "Trained. No held-out answer could be judged both before and after, so nothing is said about whether it helped."
    before, after = (np.array(side, dtype=float) for side in zip(*both, strict=True))
    bounded = bool(min(before.min(), after.min()) >= 0 and max(before.max(), after.max()) <= 1)
    found = paired_difference(before, after, bounded=bounded)
    low, high = found.interval.low, found.interval.high
    words = f"{before.mean():.3f} → {after.mean():.3f} on {len(both)} held-out prompts ({found.mean:+.3f} [{low:+.3f}, {high:+.3f}])"
    if bounded:
        words = (
            f"{before.mean():.1%} → {after.mean():.1%} of {len(both)} held-out prompts "
            f"({100 * found.mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}])"
        )
    return found, f"{'Better' if low > 0 else 'Worse' if high < 0 else 'Not shown'}: {words}."


__all__ = ["ReinforceConfig", "ReinforceResult", "TaskConfig", "cache_memory", "gym_sides", "line_of", "reinforce", "rewards_named"]
