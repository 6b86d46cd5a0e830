"""The arms of a study, asked one after another: free ones, the base model's, a hosted model's, each tuned one; then general skills.

In: the setting of a study. Out: every score, of items and of skills, each recorded as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from sapwood.errors import CheckpointError, ConfigError
from sapwood.evaluate import ArmScore, item_records, over_samples, scores_from
from sapwood.evaluate.declared import Questions, questions
from sapwood.evaluate.shipping import Skills
from sapwood.evaluate.spending import Purse
from sapwood.evaluate.study_files import file_names
from sapwood.generate import Engine
from sapwood.model import LanguageModel, learn_tokens, load_adapter, load_model
from sapwood.recipes.arms import PLAIN, TUNED, Arms
from sapwood.recipes.assess import adapter_in
from sapwood.recipes.hosted import ask_within
from sapwood.recipes.screen import Screen
from sapwood.recipes.skills import skill_items
from sapwood.recipes.tune import config_of
from sapwood.requirements import Skill
from sapwood.run import Run, saved_steps, training_seconds

if TYPE_CHECKING:
    from sapwood.recipes.study import Setting


TRAINED = "parameter."
"""How a checkpoint calls the tensors that were trained."""


@dataclass(frozen=True)
class TunedArm:
    """A run's result, or the state of one of its checkpoints."""

    name: str
    folder: Path
    """Of the adapter, or of the whole model."""
    run: Path
    step: int | None
    data: tuple[str, ...]
    selects: bool
    training_seconds: float


@dataclass(frozen=True)
class Asked:
    """What a study has heard."""

    scores: list[ArmScore]
    skills: list[Skills]
    notes: list[str]


def tuned_arms(names: Sequence[str]) -> tuple[TunedArm, ...]:
    """The runs and checkpoints that were named. Raises `ConfigError` for what is none, or is named twice."""
    if len(set(names)) < len(names):
        raise ConfigError(f"A run is named twice among {', '.join(names)}. Name each once.")
    arms = []
    for name in names:
        path, _, step = name.rpartition("@") if name.rpartition("@")[2].isdigit() else (name, "", "")
        run = Path(path)
        config = config_of(run)
        folder = adapter_in(run)
        assert folder is not None
        if step and int(step) not in saved_steps(run):
            kept = ", ".join(map(str, saved_steps(run))) or "none"
            raise ConfigError(f"{run} keeps no checkpoint of step {step}; it has: {kept}. Train with --keep for more.")
        short = TUNED if len(names) == 1 else run.resolve().name + (f"@{step}" if step else "")
        seconds = training_seconds(run, int(step) if step else None)
        arms.append(TunedArm(short, folder, run, int(step) if step else None, config.data, config.selects, seconds))
    if len({one.name for one in arms}) < len(arms):
        arms = [replace(one, name=name) for one, name in zip(arms, names, strict=True)]
    return tuple(arms)


def ask_all(setting: Setting, arms: Arms, skills: SkillArms, run: Run, screen: Screen) -> Asked:
    """Ask every arm what is missing."""
    config, notes = setting.config, list[str]()
    screen.title("Answers")
    remote = config.remote.remote(run.path)
    scores = arms.free() if setting.train_items else []
    if remote is not None:
        purse = Purse(setting.requirements.prices, config.evaluation.max_new_tokens, config.max_cost)
        answered, stopped = ask_within(remote, arms, purse)
        scores += answered
        notes += [stopped] if stopped else []
    models = _Models(setting, screen)
    earlier = _base_scores(arms, run, config.retrieved if setting.train_items else ())
    if earlier is None or skills.wanted(PLAIN):
        engine = models.base()
        scores += arms.base(engine)
        for size in config.retrieved if setting.train_items else ():
            scores += arms.retrieved(size, engine)
        skills.ask(PLAIN, engine)
        del engine
    else:
        scores += earlier
    for one in setting.tuned:
        if _complete(arms, there := _of_arm(run, one.name)) and not (one.name == setting.candidate and skills.wanted(one.name)):
            scores += there
            continue
        engine = models.tuned(one)
        scores += arms.one(one.name, engine)
        if one.name == setting.candidate:
            skills.ask(one.name, engine)
        del engine
    return Asked(scores, skills.found(), notes)


def _of_arm(run: Run, arm: str) -> list[ArmScore]:
    return scores_from(record for record in run.read("scores") if record["arm"] == arm)


def _complete(arms: Arms, scores: Sequence[ArmScore]) -> bool:
    wanted = {(item.id, sample) for item in arms.items for sample in range(arms.samples)}
    return wanted <= {(score.item, score.sample) for score in scores}


def _base_scores(arms: Arms, run: Run, sizes: Sequence[int]) -> list[ArmScore] | None:
    """All that the base model has answered; None where something is missing, so that the model must be loaded."""
    few = sorted({record["arm"] for record in run.read("scores") if record["arm"].startswith("few-shot ")})
    if arms.config.shots and not few:
        return None
    found = [_of_arm(run, arm) for arm in (PLAIN, *few, *(f"retrieved {size}" for size in sizes))]
    return [score for scores in found for score in scores] if all(_complete(arms, scores) for scores in found) else None


@dataclass
class _Models:
    """Loads one model at a time."""

    setting: Setting
    screen: Screen

    def base(self) -> Engine:
        """The model as it was."""
        model = load_model(self.setting.folder, self.setting.config.dtype)
        chat = self.setting.chat
        for note in (*model.notes, *learn_tokens(model, chat.new_tokens.values(), chat.known_tokens.values())):
            self.screen.say(note)
        return Engine(model, chat)

    def tuned(self, one: TunedArm) -> Engine:
        """The model with what a run has learned."""
        dtype = self.setting.config.dtype
        whole = (one.folder / "config.json").is_file()
        model = load_model(one.folder, dtype) if whole else load_adapter(load_model(self.setting.folder, dtype), one.folder)
        if one.step is not None:
            _turn_back(model, one)
        return Engine(model, self.setting.chat)


def _turn_back(model: LanguageModel, one: TunedArm) -> None:
    """Put the trained tensors of a checkpoint into the model. Raises `CheckpointError` where they do not fit it."""
    file = one.run / "checkpoints" / f"step-{one.step}" / "state.safetensors"
    saved = {name.removeprefix(TRAINED): value for name, value in safetensors.torch.load_file(file).items() if name.startswith(TRAINED)}
    parameters = dict(model.module.named_parameters())
    if not saved or (missing := [name for name in saved if name not in parameters]):
        raise CheckpointError(
            f"{file}: {len(missing) if saved else 'all'} of its tensors have no place in this model, such as {missing[:1]}."
        )
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(value)


@dataclass
class SkillArms:
    """General skills, of the base model and of the candidate."""

    setting: Setting
    run: Run
    screen: Screen
    arms: Arms

    def __post_init__(self) -> None:
        self._arms: dict[str, Arms] = {}
        if self.setting.candidate is None:
            return
        for skill, records in zip(self.setting.requirements.general, records_of(self.setting.requirements.general), strict=True):
            with self.screen.progress(skill.name) as advance:
                items, scorer, _ = skill_items(skill, advance)
            self.run.replace(f"{records}-items", *item_records(items))
            config = replace(self.arms.config, shots=())
            self._arms[skill.name] = Arms(items, [], self.setting.chat, scorer, config, self.run, self.screen, records=records)

    def questions(self) -> tuple[Questions, ...]:
        """What will be asked, for the plan."""
        return tuple(questions(name, arms.items) for name, arms in self._arms.items())

    def wanted(self, arm: str) -> bool:
        """Whether any skill still waits for this arm."""
        return any(not _answered(self.run, arms, arm) for arms in self._arms.values())

    def ask(self, arm: str, engine: Engine) -> None:
        """Ask every skill."""
        for name, arms in self._arms.items():
            self.screen.say(f"{name}:", "dim")
            arms.one(arm, engine)

    def found(self) -> list[Skills]:
        """Scores before and after, one an item."""
        found = []
        for name, arms in self._arms.items():
            scores = over_samples(scores_from(self.run.read(arms.records)))
            sides = [[score for score in scores if score.arm == arm] for arm in (PLAIN, self.setting.candidate)]
            found.append(Skills(name, *sides))
        return found


def records_of(skills: Sequence[Skill]) -> list[str]:
    """Names of the records of each skill: the end of its own name, numbered where two end alike, so that no two skills' answers mix."""
    return [f"skill-{name}" for name in file_names([Path(skill.name).name for skill in skills])]


def _answered(run: Run, arms: Arms, arm: str) -> bool:
    return {item.id for item in arms.items} <= {record["item"] for record in run.read(arms.records) if record["arm"] == arm}
