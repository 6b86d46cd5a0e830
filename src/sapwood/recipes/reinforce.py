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
from sapwood.evaluate.gym import gym_items, verified
from sapwood.evaluate.items import item_records
from sapwood.evaluate.learning_figures import ABOUT_THE_LOSS
from sapwood.evaluate.reward_verdict import reward_verdict, values_by_step
from sapwood.evaluate.rewards import Reward, judge_by, reward_named
from sapwood.evaluate.tool_turns import Tool
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.recipes.beginning import Opened, RunConfig, begin, opened, write_ledger
from sapwood.recipes.chain import environment_of
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.judge_reward import JudgeRewardConfig
from sapwood.recipes.learning_course import REWARDS
from sapwood.recipes.learning_live import Announced, Told, announced, watching_learning
from sapwood.recipes.other_rows import Sides, prompts_to_ask, refuse_unread, scan
from sapwood.recipes.playing import Play, PlayConfig, play_of
from sapwood.recipes.preflight import preflight
from sapwood.recipes.reporting import page_kept, write_page
from sapwood.recipes.reward_model import rewards_of_models, told_apart
from sapwood.recipes.screen import Screen
from sapwood.records import Judge, Sampler, SamplingParams
from sapwood.records.protocols import release
from sapwood.run import Run, read_json, step_records
from sapwood.stats import Difference
from sapwood.train.grpo import GrpoConfig, GrpoResult, grpo
from sapwood.train.grpo_report import GrpoStep, shown
from sapwood.train.rollouts import Asked, Rollouts

CACHE_SHARE = 4
"""Keys and values of sampling may take one part in so many of the free memory; the bytes are kept in the run: answers depend on them."""


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

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.path / "report.html"

    def summary(self) -> dict[str, Any]:
        """The result for machines; rates are shares of 1."""
        found = self.difference
        return {
            "line": self.line,
            "run": str(self.path),
            "report": str(self.report),
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
    with run:
        _write_down(run, config, start, sides, screen, ledger=rows is not None)
        with page_kept(run, screen):
            screen.title("Model")
            model = start.load(screen)
            run.write_json("environment", environment_of(start.folder, model, start.chat))
            play.refuse_unlike(config.train.policy, shares_prefixes=model.shares_prefixes)
            sitting = _Sitting(config, run, screen, play, start, sides, judge, cache_memory(run))
            _preflight(sides.train, sitting.sampler(model), sitting.judge, config, run, screen)
            screen.title("Training")
            screen.say(ABOUT_THE_LOSS)
            result = _learn(sitting, model)
            verdict = reward_verdict(values_by_step(step_records(run.path / "metrics.jsonl")), config.train.steps)
            run.write_json("verdict", verdict.to_dict())
        return ReinforceResult(run.path, verdict.line, verdict.difference, result, time.perf_counter() - began)


@dataclass(frozen=True)
class _Sitting:
    """What one sitting works with."""

    config: ReinforceConfig
    run: Run
    screen: Screen
    play: Play
    start: Opened
    sides: Sides[Asked]
    judge: Judge
    memory: int

    def sampler(self, model: LanguageModel) -> Sampler:
        """The engine on these weights, its answers played out."""
        asked = [*self.sides.train, *self.sides.held_out]
        return self.play.around(Engine(model, self.start.chat, memory=self.memory), asked, self.start.chat)


def _learn(sitting: _Sitting, model: LanguageModel) -> GrpoResult:
    """The loop, watched; held-out prompts are asked at each evaluation, and the run's page is written anew."""
    config, run, screen, held_out = sitting.config, sitting.run, sitting.screen, sitting.sides.held_out
    with watching_learning(screen, run, REWARDS) as watch:

        def observe(step: int, current: LanguageModel) -> None:
            watch.evaluated(step)
            if held_out:
                with watch.busy("answering held-out prompts"):
                    _examined(sitting.sampler(current), held_out, sitting.judge, config, step, run, screen)
                watch.follow()
            if step:
                write_page(run, screen)

        def report(done: GrpoStep, rollouts: Rollouts) -> None:
            watch.stepped(done.step, done.num_steps, done.seconds, Told(line_of(done), shown(rollouts, done.step)))

        return grpo(
            model,
            sitting.sides.train,
            announced(sitting.judge, watch),
            lambda current: Announced(sitting.sampler(current), watch),
            config.train,
            run,
            longest=sitting.play.longest(config.train.max_new_tokens),
            context=sitting.start.chat.context_length,
            report=report,
            observe=observe,
            say=screen.say,
            beside=sitting.start.chat.saved_files(),
        )


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
) -> None:
    """What the first reward makes of greedy answers to held-out prompts; recorded, and said."""
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


__all__ = ["ReinforceConfig", "ReinforceResult", "TaskConfig", "cache_memory", "gym_sides", "line_of", "reinforce", "rewards_named"]
