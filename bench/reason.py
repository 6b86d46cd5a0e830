"""`sapwood bench reason`: does GRPO teach a small model to reason, beyond what more imitation of the same traces does?

A cold start by SFT on few worked solutions of a reasoning-gym task, then GRPO with the task's own verifier on instances without
solutions; beside it, the SFT checkpoint trained on the same solutions for as long as GRPO took. Judged are greedy answers to unseen
instances (another seed, no question twice), and pass@1 and pass@8 of samples. The curves on the way are of other instances, so that
those of the test are looked at once. It is no comparison with a peer, but the proof of the recipe; every stage goes on where it was
stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench.setting import commit, machine
from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.cli.options import Json, parse, screen_for
from sapwood.evaluate.gym import ENTRY, gym_items, verified
from sapwood.evaluate.repeated import pass_at_k
from sapwood.evaluate.rewards import Reward, judge_by
from sapwood.evaluate.scorers import Scorer
from sapwood.generate import Engine
from sapwood.model import LanguageModel, load_adapter, load_model
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model
from sapwood.records import Conversation, Ended, Example, Item, Message, SamplingParams, Score
from sapwood.run import Run, open_run, step_records, write_atomic
from sapwood.stats import paired_difference, rate_interval
from sapwood.train import Asked, GrpoConfig, OptimConfig, PolicyConfig, SftConfig, grpo, sft

DESCRIPTION = "Cold-start SFT, then GRPO with a verifier, against as much time of more SFT, on unseen instances of a task."
TASK = "chain_sum"
BUDGET = 2048
"""Unique tokens a micro-batch: measuring the fastest would take longer than the cold start itself."""
LOOKS = 10
"""Times that each stage is looked at on the way."""
LEAST_GAIN = 0.08
"""What GRPO alone must gain over the checkpoint that it starts from."""


@dataclass(frozen=True, kw_only=True)
class ReasonBench:
    """The task, and how much of everything."""

    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id."""
    out: Path = Path("runs/reason")
    """Folder of the stages; a stage that is finished there is not done again."""
    least_terms: int = 2
    """Fewest numbers of a sum."""
    most_terms: int = 2
    """Most numbers of a sum."""
    digits: int = 2
    """Most digits of a number."""
    traces: int = 100
    """Worked solutions of the cold start."""
    epochs: float = 2.0
    """Times each of them is trained there."""
    batch: int = 8
    """Worked solutions a step of SFT."""
    steps: int = 200
    """Steps of GRPO."""
    prompts: int = 16
    """Prompts a step."""
    group: int = 8
    """Answers a prompt."""
    lr: float = 2e-4
    """Learning rate of GRPO."""
    more_lr: float = 3e-4
    """Peak learning rate of more SFT."""
    resample: int = 1
    """Rounds of further prompts in place of dead groups."""
    unseen: int = 200
    """Instances that are judged."""
    sampled: int = 200
    """How many of these are sampled for pass@k."""
    watched: int = 100
    """Instances that are answered on the way, for the curves; none of them is judged or trained on."""
    longest: int = 32
    """Tokens of an answer that is judged, of every state alike: the base model writes a sentence."""
    samples: int = 8
    """Samples of each for pass@k."""
    seed: int = 0
    """Seed of training; the instances of the test have another."""

    @property
    def settings(self) -> dict[str, int]:
        """The task's own settings."""
        return {"min_terms": self.least_terms, "max_terms": self.most_terms, "min_digits": 1, "max_digits": self.digits}


@dataclass(frozen=True)
class Work:
    """What all stages share."""

    config: ReasonBench
    folder: Path
    chat: Chat
    test: list[Item]
    watched: list[Item]
    train: list[Item]
    screen: Screen

    def model(self, adapter: str | None = None) -> LanguageModel:
        """The base model, or with the adapter of a stage, which goes on being trained."""
        model = load_model(self.folder, "auto")
        return model if adapter is None else load_adapter(model, self.config.out / adapter / "adapter", trainable=True)

    def prompt(self, item: Item) -> Any:
        """What is asked of the model."""
        return self.chat.prompt(item.conversation.messages)


def run(words: list[str], json: Json) -> None:
    """Parse, run all stages, show."""
    config = parse(ReasonBench(), "bench reason", words, DESCRIPTION)
    screen = screen_for(json)
    began = time.perf_counter()
    work = prepare(config, screen)
    measured = {"base": measure(work, "base", work.model)}
    seconds = {"sft": imitate(work, "sft", None, config.epochs)}
    measured["sft"] = measure(work, "sft", lambda: work.model("sft"))
    seconds["grpo"] = reinforce(work)
    measured["grpo"] = measure(work, "grpo", lambda: work.model("grpo"))
    seconds["more sft"] = imitate(work, "more-sft", "sft", as_long(work, seconds["grpo"]))
    measured["more sft"] = measure(work, "more-sft", lambda: work.model("more-sft"))
    result = conclude(work, measured, seconds, time.perf_counter() - began)
    show(result, screen)
    json.write(result)


def prepare(config: ReasonBench, screen: Screen) -> Work:
    """The instances: those of the test first, so that none of them is trained on."""
    folder = fetch_model(config.model, screen)
    test = gym_items(TASK, config.unseen, seed=config.seed + 3000, settings=config.settings)
    watched = gym_items(TASK, config.watched, seed=config.seed + 4000, settings=config.settings, exclude=test)
    wanted = config.traces + config.prompts * config.steps * (1 + config.resample)
    train = gym_items(TASK, wanted, seed=config.seed, settings=config.settings, exclude=[*test, *watched])
    return Work(config, folder, Chat.load(folder), test, watched, train, screen)


def worked(item: Item) -> str:
    """A worked solution of a sum: one line for each step but the last, then the result."""
    words = item.meta[ENTRY]["question"].split(":")[1].strip(" =").split()
    value, lines = int(words[0]), []
    for sign, number in zip(words[1::2], words[2::2], strict=True):
        after = value + int(number) if sign == "+" else value - int(number)
        lines.append(f"{value}{sign}{number}={after}")  # without spaces, which this tokenizer makes tokens of
        value = after
    assert str(value) == item.reference, "the solution ends in the task's own answer"
    return "\n".join([*lines[:-1], str(value)])


def traces(work: Work) -> list[Example]:
    """Rows of the cold start."""
    some = work.train[: work.config.traces]
    return [work.chat.example(Conversation((*item.conversation.messages, Message("assistant", worked(item))))) for item in some]


def imitate(work: Work, name: str, start: str | None, epochs: float) -> float:
    """A stage of SFT; seconds of its steps."""
    work.screen.title(f"{name}: {epochs:g} epochs of {work.config.traces} worked solutions")
    opened = open_run(work.config.out / name)
    try:
        optim = OptimConfig(lr=5e-4 if start is None else work.config.more_lr)
        steps = math.ceil(epochs * work.config.traces / work.config.batch)
        config = SftConfig(
            epochs=epochs, batch=work.config.batch, seed=work.config.seed, budget=BUDGET, eval_every=-(-steps // LOOKS), optim=optim
        )
        if not (opened.path / "adapter").is_dir():
            sft(work.model(start), traces(work), (), config, opened, say=work.screen.say, observe=watch(work, opened))
        return sum(spent(opened.path))
    finally:
        opened.close()


def watch(work: Work, run: Run) -> Callable[[int, LanguageModel], None]:
    """Records the greedy answers to the watched instances at each evaluation; the time is no step's."""
    score = verified(TASK, work.config.settings)

    def observe(step: int, model: LanguageModel) -> None:
        answers = Engine(model, work.chat, slots=64).generate(
            [work.prompt(item) for item in work.watched], SamplingParams(max_new_tokens=work.config.longest)
        )
        right = [float((score(item, one).value or 0) >= 1) for item, one in zip(work.watched, answers, strict=True)]
        run.append("watched", {"step": step, "greedy": float(np.mean(right))})
        work.screen.say(f"step {step}: {np.mean(right):.0%} of {len(right)} watched instances")

    return observe


def watched(path: Path) -> list[dict[str, float]]:
    """What was seen on the way: greedy answers by seconds of training."""
    seconds = [0.0, *np.cumsum(spent(path)).tolist()]
    return [{"seconds": seconds[record["step"]], "greedy": record["greedy"]} for record in step_records(path / "watched.jsonl")]


def spent(path: Path) -> list[float]:
    """Seconds of each step of a run."""
    return [record["seconds"] for record in step_records(path / "metrics.jsonl") if record["kind"] == "train"]


def as_long(work: Work, seconds: float) -> int:
    """Epochs of imitation that take at least so many seconds: by the median step of the cold start, whose first steps are slow."""
    pace = float(np.median(spent(work.config.out / "sft"))) * math.ceil(work.config.traces / work.config.batch)
    return math.ceil(1.1 * seconds / pace)


def reinforce(work: Work) -> float:
    """The stage of GRPO; seconds of its steps."""
    config, screen = work.config, work.screen
    screen.title(f"grpo: {config.steps} steps of {config.prompts} prompts × {config.group} answers")
    judge = judge_by([Reward("right", finished(verified(TASK, config.settings)))])
    asked = [Asked(item, work.prompt(item)) for item in work.train[config.traces :]]
    setting = GrpoConfig(
        steps=config.steps,
        prompts=config.prompts,
        group=config.group,
        max_new_tokens=longest(work),
        resample=config.resample,
        budget=BUDGET,
        eval_every=-(-config.steps // LOOKS),
        save_every=-(-config.steps // 4),
        seed=config.seed,
        policy=PolicyConfig(loss="dr_grpo", scaling="none", clip_high=0.28),
        optim=OptimConfig(lr=config.lr, schedule="constant"),
    )
    opened = open_run(config.out / "grpo")
    try:
        if not (opened.path / "adapter").is_dir():
            grpo(
                work.model("sft"),
                asked,
                judge,
                lambda model: Engine(model, work.chat, slots=config.prompts * config.group, memory=1 << 30),
                setting,
                opened,
                say=screen.say,
                report=lambda done, _: screen.say(
                    f"step {done.step}: solved {done.solved:.0%}, reward {done.reward:.3f} ± {done.spread:.3f}, {done.length:.0f} tokens, "
                    f"{done.sampling_seconds:.1f} s sampling, {done.update_seconds:.1f} s update"
                ),
                observe=watch(work, opened),
            )
        return sum(spent(opened.path))
    finally:
        opened.close()


def finished(score: Scorer) -> Scorer:
    """`score`, and 0 for an answer that was cut: of a row of numbers that never ends, the last one is right now and then."""
    return lambda item, completion: Score(0.0, None, "cut at the limit") if completion.ended is Ended.LENGTH else score(item, completion)


def longest(work: Work) -> int:
    """Tokens that the longest worked solution takes, and a quarter more."""
    return int(1.25 * max(len(row.completion_T) for example in traces(work) for row in example.rows))


def measure(work: Work, name: str, model: Callable[[], LanguageModel]) -> dict[str, Any]:
    """Greedy answers and samples of one state on the unseen instances; read where a sitting before has measured it."""
    file = work.config.out / f"{name}.json"
    if file.is_file():
        found: dict[str, Any] = orjson.loads(file.read_bytes())
        return found
    score = verified(TASK, work.config.settings)
    engine, many = Engine(model(), work.chat, slots=64), work.config.samples
    prompts = [work.prompt(item) for item in work.test]
    sampled = work.test[: work.config.sampled]
    length = work.config.longest
    work.screen.title(f"measuring {name}: {len(prompts)} greedy answers, {many} samples of {len(sampled)} of them")
    greedy = engine.generate(prompts, SamplingParams(max_new_tokens=length))
    right = [float((score(item, one).value or 0) >= 1) for item, one in zip(work.test, greedy, strict=True)]
    work.screen.say(f"{np.mean(right):.1%} of the greedy answers are right.")
    drawn = engine.generate(
        [work.prompt(item) for item in sampled for _ in range(many)],
        SamplingParams(max_new_tokens=length, temperature=1.0, seed=work.config.seed),
    )
    hit = [float((score(sampled[place // many], one).value or 0) >= 1) for place, one in enumerate(drawn)]
    solved = [int(sum(hit[first : first + many])) for first in range(0, len(hit), many)]
    interval = rate_interval(sum(right), len(right))
    found = {
        "greedy": float(np.mean(right)),
        "low": interval.low,
        "high": interval.high,
        "pass_at_1": float(np.mean([count / many for count in solved])),
        f"pass_at_{many}": float(np.mean([pass_at_k(many, count, many) for count in solved])),
        "tokens": float(np.mean([len(one.ids) for one in greedy])),
        "right": right,
        "example": greedy[0].text,
    }
    work.config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(file, orjson.dumps(found))
    work.screen.say(f"{name}: {found['greedy']:.1%} greedy [{interval.low:.0%}, {interval.high:.0%}], pass@1 {found['pass_at_1']:.1%}")
    return found


def conclude(work: Work, measured: dict[str, dict[str, Any]], seconds: dict[str, float], whole: float) -> dict[str, Any]:
    """Differences with intervals, and whether the bars are cleared."""
    gain = difference(measured["sft"]["right"], measured["grpo"]["right"])
    beyond = difference(measured["more sft"]["right"], measured["grpo"]["right"])
    curve = [
        {
            name: record[name]
            for name in ("step", "reward", "solved", "length", "entropy", "grad_norm", "dead", "resampled", "seconds", "sampling_seconds")
        }
        for record in step_records(work.config.out / "grpo" / "metrics.jsonl")
        if record["kind"] == "train"
    ]
    return {
        "arms": {name: {key: value for key, value in found.items() if key != "right"} for name, found in measured.items()},
        "grpo_over_sft": gain,
        "grpo_over_more_sft": beyond,
        "cleared": gain["mean"] >= LEAST_GAIN and gain["low"] > 0 and beyond["mean"] > 0,
        "training_seconds": seconds,
        "more_sft_epochs": len(spent(work.config.out / "more-sft")) * work.config.batch / work.config.traces,
        "watched": {"grpo": watched(work.config.out / "grpo"), "more sft": watched(work.config.out / "more-sft")},
        "share_of_grpo_spent_sampling": sum(point["sampling_seconds"] for point in curve) / max(seconds["grpo"], 1e-9),
        "seconds": whole,
        "curve": curve,
        "config": {**vars(work.config), "task": TASK},
        "machine": machine(),
        "commit": commit(),
    }


def difference(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """Of paired answers, with its interval at 95 %."""
    found = paired_difference(before, after)
    return {"mean": found.mean, "low": found.interval.low, "high": found.interval.high}


def show(result: dict[str, Any], screen: Screen) -> None:
    """The table and the two differences."""
    screen.title("Unseen instances")
    for name, arm in result["arms"].items():
        samples = next(value for key, value in arm.items() if key.startswith("pass_at_") and key != "pass_at_1")
        screen.lines([f"{name:<10}{arm['greedy']:>7.1%} greedy   pass@1 {arm['pass_at_1']:>6.1%}   of many {samples:>6.1%}"])
    for name, words in (("grpo_over_sft", "its start"), ("grpo_over_more_sft", "as much time of more SFT")):
        found = result[name]
        screen.say(f"GRPO against {words}: {100 * found['mean']:+.1f} points [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]")
