"""`sapwood reason RECIPE.yaml`: the stages by which a model learns to reason, each measured on the same unseen prompts.

    stages:
      - {kind: sft, data: [traces.jsonl], epochs: 2}              # cold start on worked answers
      - {kind: grpo, task: chain_sum, steps: 100}                 # from the checkpoint of the stage before
      - {kind: distill, task: chain_sum, samples: 8}              # right answers of the stage before: rejection sampling
      - {kind: sft, data: [traces.jsonl, distilled], epochs: 2}   # from the base model again, on the union
      - {kind: grpo, task: chain_sum, rewards: [gym, format*0.1, tokens:50-400*0.1]}

DeepSeek-R1, arXiv:2501.12948, §2.3. In: a recipe, whose stages take the knobs of their verbs by plain names. Out: a folder with a run for
each stage, `stages.json` with greedy accuracy, pass@1, pass@k and maj@k with intervals before and after each, and a page of all. A stage
that is finished is not run again, and one that was stopped goes on. A recipe that was changed where it has been followed already is
refused.
Left out on purpose: stages that branch. A recipe is a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import yaml

from sapwood.assets import DEFAULT_MODEL
from sapwood.config import did_you_mean, from_dict, to_dict, with_knobs
from sapwood.errors import CheckpointError, ConfigError, SapwoodError, storage
from sapwood.evaluate.repeated import maj_at_k, pass_at_k
from sapwood.evaluate.stages_page import write_stages
from sapwood.generate import Engine
from sapwood.recipes.beginning import StartConfig, opened
from sapwood.recipes.distill import DistillConfig, distill
from sapwood.recipes.identity import hash_of
from sapwood.recipes.prefer import PreferConfig, prefer
from sapwood.recipes.reinforce import ReinforceConfig, TaskConfig, gym_sides, reinforce, rewards_named
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import TuneConfig, tune
from sapwood.records import SamplingParams, Score
from sapwood.run import read_json, write_atomic
from sapwood.stats import mean_interval, rate_interval

Kind = Literal["sft", "grpo", "distill", "dpo"]
KINDS: Mapping[str, Any] = {"sft": TuneConfig, "grpo": ReinforceConfig, "distill": DistillConfig, "dpo": PreferConfig}
DISTILLED = "distilled"
"""As a name of data: the rows of the last `distill` stage before."""
FILE, PAGE = "stages.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What each stage is measured on."""

    gym: TaskConfig = field(default_factory=lambda: TaskConfig(instances=1, unseen=100))
    """The task, and its unseen instances."""
    samples: int = 4
    """Samples of each prompt, for pass@k and maj@k."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("max_new_tokens", self.max_new_tokens), ("gym.unseen", self.gym.unseen)):
            if value < 1:
                raise ConfigError(f"measure.{name} is {value}; give at least 1.")


@dataclass(frozen=True, kw_only=True)
class ReasonConfig:
    """A recipe."""

    stages: tuple[dict[str, Any], ...] = ()
    """One mapping a stage: its `kind` and the knobs of that verb."""
    out: Path = Path("runs/reason")
    """Folder of the stages."""
    model: str = DEFAULT_MODEL
    """The base model of all of them."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)


@dataclass(frozen=True)
class Stage:
    """One stage, resolved."""

    name: str
    kind: str
    config: Any


def read_recipe(path: Path) -> ReasonConfig:
    """A recipe in YAML. Raises `ConfigError` for what is not one, naming the key."""
    try:
        with storage(path, "read"):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give a recipe in YAML; docs/rewards.md has one.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({error}). Mend it and try again.") from None
    stages = content.pop("stages", None) if isinstance(content, dict) else None
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"{path}: a recipe has a list of `stages`, each a mapping with a `kind`; docs/rewards.md has one.")
    return replace(from_dict(ReasonConfig, content, str(path)), stages=tuple(stages))


def plan_stages(config: ReasonConfig) -> list[Stage]:
    """All stages with their configs, before anything is run. Raises `ConfigError` that names the stage."""
    if not config.stages:
        raise ConfigError("The recipe has no stages. Give a list under `stages`, each with a kind: sft, grpo, distill or dpo.")
    found: list[Stage] = []
    trained: Path | None = None  # the last stage that trained a model
    rows: Path | None = None  # what the last distillation will have left
    for number, given in enumerate(config.stages, 1):
        knobs = dict(given)
        kind = str(knobs.pop("kind", ""))
        name = f"stage {number} ({kind or 'no kind'})"
        if kind not in KINDS:
            raise ConfigError(f"{name}: give a kind.{did_you_mean(kind, list(KINDS))} Kinds: {', '.join(KINDS)}.")
        out = config.out / f"{number}-{kind}"
        data = knobs.pop("data", ())
        names = tuple(str(rows) if one == DISTILLED and rows else one for one in ([data] if isinstance(data, str) else data))
        if DISTILLED in names:
            raise ConfigError(f"{name}: `{DISTILLED}` names the rows of a distill stage before it, and there is none.")
        try:
            start = None if kind == "sft" else trained
            base = KINDS[kind](
                data=names, out=out, **({} if kind == "sft" else {"start_from": StartConfig(model=config.model, start=start)})
            )
            base = replace(base, model=config.model) if kind == "sft" else base
            made = with_knobs(base, knobs)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        found.append(Stage(out.name, kind, made))
        trained, rows = (trained, out / "rows.jsonl") if kind == "distill" else (out, rows)
    return found


def reason(config: ReasonConfig, *, screen: Screen | None = None) -> dict[str, Any]:
    """Run what is not finished, measure, and return what `stages.json` holds.

    Raises what the stages raise, and `CheckpointError` where a finished stage was run or measured with other settings.
    """
    screen = screen or Screen(quiet=True)
    stages = plan_stages(config)
    with storage(config.out, "create the folder"):
        config.out.mkdir(parents=True, exist_ok=True)
    file = config.out / FILE
    done: dict[str, Any] = read_json(file)
    settings = _settings(config)
    _refuse_others(done, settings, config.out)
    if config.measure.gym.task is not None and "base" not in done:
        done["base"] = {"kind": "base", "settings": settings["base"], "measured": measured(config, None, screen)}
        _keep(file, done, len(stages), screen)
    for stage in stages:
        if stage.name in done:
            screen.say(f"{stage.name} is finished: {done[stage.name]['line']}")
            continue
        screen.title(f"{stage.name} of {len(stages)} stages")
        line = _run(stage, screen)
        trained = stage.kind != "distill" and config.measure.gym.task is not None
        done[stage.name] = {
            "kind": stage.kind,
            "settings": settings[stage.name],
            "line": line,
            "measured": measured(config, stage.config.out, screen) if trained else None,
        }
        _keep(file, done, len(stages), screen)
    return done


def _settings(config: ReasonConfig) -> dict[str, str]:
    """A hash for the base and each stage, of all that what is kept of it depends on, wherever the folder lies."""
    measuring = [config.model, to_dict(config.measure)]
    stages = plan_stages(replace(config, out=Path()))
    return {"base": hash_of(measuring), **{stage.name: hash_of([measuring, to_dict(stage.config)]) for stage in stages}}


def _refuse_others(done: Mapping[str, Any], settings: Mapping[str, str], out: Path) -> None:
    """A stage that is finished is not run again, so a recipe that says something else of it must not pass for one that was followed."""
    for name, one in done.items():
        if one.get("settings", settings.get(name)) != settings.get(name):
            raise CheckpointError(
                f"{out} holds {name}, finished with other settings than the recipe has now. Give another folder with --out, or remove "
                f"{name} from {out / FILE} and its folder, and what follows it."
            )


def _run(stage: Stage, screen: Screen) -> str:
    match stage.kind:
        case "sft":
            return tune(stage.config, screen=screen).line
        case "grpo":
            return reinforce(stage.config, screen=screen).line
        case "distill":
            return distill(stage.config, screen=screen).line
        case _:
            return prefer(stage.config, screen=screen).line


def measured(config: ReasonConfig, run: Path | None, screen: Screen) -> dict[str, Any]:
    """Greedy accuracy, pass@1, pass@k and maj@k of one state on the unseen prompts, and how often an answer took itself back."""
    measure = config.measure
    start = opened(StartConfig(model=config.model, start=run), config.model, None, screen)
    asked = gym_sides(measure.gym, start.chat).held_out
    scorer = rewards_named((), measure.gym, (), False, False)[0].scorer
    assert scorer is not None, "a task's verifier is a scorer"
    engine, many = Engine(start.load(screen), start.chat), measure.samples
    with screen.progress("measuring") as advance:
        greedy = engine.generate([one.prompt for one in asked], SamplingParams(max_new_tokens=measure.max_new_tokens))
        advance(1, 2, "samples")
        params = SamplingParams(max_new_tokens=measure.max_new_tokens, temperature=1.0)
        drawn = engine.generate([one.prompt for one in asked for _ in range(many)], params)
    singles = [scorer(one.item, answer) for one, answer in zip(asked, greedy, strict=True)]
    groups = [[scorer(one.item, answer) for answer in drawn[place * many : (place + 1) * many]] for place, one in enumerate(asked)]
    found = {
        **figures(singles, groups),
        "tokens": float(np.mean([len(answer.ids) for answer in greedy])),
        "self_corrections": float(np.mean([takes_back(answer.text) for answer in drawn])),
    }
    rate = found["greedy"]["mean"]
    screen.say(f"{'base' if run is None else run.name}: {rate:.1%} of {len(singles)} unseen prompts right (greedy)", "bold")
    if found["unjudged"]:
        screen.say(f"{found['unjudged']} answers could not be judged and count as wrong, such as: {found['reason']}", "yellow")
    return found


def figures(singles: Sequence[Score], groups: Sequence[Sequence[Score]]) -> dict[str, Any]:
    """Of one greedy answer and a group of samples a prompt. What could not be judged counts as wrong, is counted, and has its reason."""
    many = len(groups[0])
    right = [(score.value or 0) >= 1 for score in singles]
    marks = [[(score.value or 0) >= 1 for score in group] for group in groups]
    interval = rate_interval(sum(right), len(right))
    unjudged = [score.explanation for score in (*singles, *(score for group in groups for score in group)) if score.value is None]
    return {
        "greedy": {"mean": float(np.mean(right)), "low": interval.low, "high": interval.high},
        "pass@1": _mean([sum(group) / many for group in marks]),
        f"pass@{many}": _mean([pass_at_k(many, sum(group), many) for group in marks]),
        f"maj@{many}": _mean([maj_at_k([score.answer for score in group], mark, many) for group, mark in zip(groups, marks, strict=True)]),
        "unjudged": len(unjudged),
        "reason": unjudged[0] if unjudged else "",
    }


CORRECTIONS = ("wait", "let me check", "let me re", "actually,", "that is wrong", "that's wrong", "mistake", "hmm")


def takes_back(text: str) -> bool:
    """Whether an answer seems to correct itself, by the words that DeepSeek-R1's do (arXiv:2501.12948, table 3)."""
    lower = text.lower()
    return any(words in lower for words in CORRECTIONS)


def _mean(values: Sequence[float]) -> dict[str, float]:
    interval = mean_interval(values)
    return {"mean": float(np.mean(values)), "low": interval.low, "high": interval.high}


def _keep(file: Path, done: Mapping[str, Any], planned: int, screen: Screen) -> None:
    """What is known so far, and its page. One that cannot be written is said and ends nothing: all of it is in the file."""
    write_atomic(file, orjson.dumps(done, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY, default=str))
    try:
        write_stages(file.parent / PAGE, read_json(file), planned)
    except SapwoodError as error:
        screen.say(f"The page of the stages could not be written: {error}", "yellow")
