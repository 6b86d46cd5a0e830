"""`sapwood study`: any number of ways to answer the same items, judged by a plan that was declared before.

In: runs (and checkpoints of them), or files and a model; requirements.yaml. Out: a directory with plan.json, scores, ship.json, and the
report as a page, Markdown, CSV and JUnit. A study that was stopped goes on where it was: no answer is asked, or paid, twice.
Left out on purpose: training. A study measures what is there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.config import load_yaml, save_yaml, to_dict
from sapwood.data.alike import contamination
from sapwood.errors import CheckpointError, ConfigError, DataError
from sapwood.evaluate import ArmScore, item_records, items_from, over_samples
from sapwood.evaluate.declared import Declared, Plan, declare, questions
from sapwood.evaluate.faults import Labels
from sapwood.evaluate.free import FREE_ARMS
from sapwood.evaluate.hosted import HOSTED
from sapwood.evaluate.items import spoken_by_users
from sapwood.evaluate.labels import read_labels
from sapwood.evaluate.shipping import Shipping, Skills, ship
from sapwood.evaluate.study_files import write_study
from sapwood.model import Dtype
from sapwood.recipes.arms import PLAIN, Arms, EvalConfig, scorer_for
from sapwood.recipes.assess import refuse_trained, without_trained
from sapwood.recipes.hosted import HostedConfig
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.item_set import looked
from sapwood.recipes.prepare import LOOKED_UP, DataConfig, Prepared, conversations_among, prepare_questions, scan_files, set_apart
from sapwood.recipes.screen import Screen
from sapwood.recipes.study_arms import SkillArms, TunedArm, ask_all, tuned_arms
from sapwood.recipes.tune import config_of, fetch_model, load_chat
from sapwood.records import Item
from sapwood.requirements import Requirements, read_requirements
from sapwood.run import Run, new_run_path, open_run, read_json


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study."""

    data: tuple[str, ...] = ()
    """Files of rows, or a task by name; those of the first run where not given."""
    runs: tuple[str, ...] = ()
    """Finished runs to compare, such as `runs/a`, and checkpoints of them, such as `runs/a@40`."""
    requirements: Path | None = None
    """What the use case needs (`sapwood eval init` writes it); without it the study asks only for a gain."""
    candidate: str | None = None
    """The arm that may be shipped; must be named where there are several tuned ones."""
    model: str = DEFAULT_MODEL
    """A name, a local folder, or a hub id; that of the first run where one is named."""
    template: str | None = None
    """A chat template: `chatml`, `plain`, or a Jinja file."""
    tools_in_system: bool = False
    """Offer tools in the system message, and write calls and results as text."""
    retrieved: tuple[int, ...] = ()
    """Numbers of examples that arms are shown, for each question the training rows nearest to it."""
    samples: int = 1
    """Answers to each question; above 1 they are drawn at `temperature`."""
    temperature: float = 0.0
    """Of every arm. 0 takes the most likely token."""
    max_cost: float | None = None
    """What the hosted model may cost in all, at the prices of the requirements; it is asked no further then."""
    labels: Path | None = None
    """What people found: `votes.jsonl` of `sapwood review export`, or JSON Lines of {"arm": …, "item": …, "errors": [names]}, an empty
    list where they found nothing."""
    texts: bool = True
    """Put questions and answers into the report; without them it holds ids, scores and tags alone."""
    plan_only: bool = False
    """Declare the plan, say what it can show, and ask nothing."""
    out: Path | None = None
    """The directory; `runs/study-NAME-1`, `-2`, … where not given. A study that was stopped goes on if it is named again."""
    dtype: Dtype = "auto"
    """Type of the base weights."""
    remote: HostedConfig = field(default_factory=HostedConfig)
    rows: DataConfig = field(default_factory=DataConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.samples > 1 and self.temperature == 0):
            raise ConfigError(f"samples is {self.samples} at temperature {self.temperature}; several answers differ only at one above 0.")
        if min(self.retrieved, default=1) < 1:
            raise ConfigError(f"retrieved is {self.retrieved}; give numbers of at least 1, or leave it out.")
        if self.max_cost is not None and self.remote.hosted_url is None:
            raise ConfigError("max_cost bounds what a hosted model costs, and none is named (--hosted-url, --hosted-model).")


@dataclass(frozen=True)
class StudyResult:
    """What was found."""

    path: Path
    declared: Declared
    shipping: Shipping | None
    """None where only the plan was made, or nothing is there to be shipped."""
    line: str
    seconds: float

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.path / "report.html"


def config_for(names: Sequence[str]) -> StudyConfig:
    """The config that options are laid over: of runs, of files, or of a study's directory or config file named again."""
    if len(names) == 1 and (file := _saved(Path(names[0]))) is not None:
        return load_yaml(StudyConfig, file)
    runs = tuple(name for name in names if (Path(name.rpartition("@")[0] or name) / "config.yaml").is_file() or _has_step(name))
    files = tuple(name for name in names if name not in runs)
    if not runs:
        return StudyConfig(data=files, rows=DataConfig(held_out=0.1))
    before = config_of(Path(runs[0].rpartition("@")[0]) if _has_step(runs[0]) else Path(runs[0]))
    return StudyConfig(
        data=files or before.data,
        runs=runs,
        model=before.model,
        template=before.template,
        tools_in_system=before.tools_in_system,
        dtype=before.dtype,
        rows=before.rows,
        evaluation=before.evaluation,
    )


def _has_step(name: str) -> bool:
    return name.rpartition("@")[2].isdigit() and "@" in name


def _saved(path: Path) -> Path | None:
    """The config of a study, by its directory or its own name; the plan beside it says that it is one."""
    file = path / "config.yaml" if path.is_dir() else path
    return file if file.suffix == ".yaml" and file.is_file() and "\nruns:" in file.read_text(encoding="utf-8", errors="replace") else None


@dataclass(frozen=True)
class Setting:
    """What every arm of a study shares."""

    config: StudyConfig
    requirements: Requirements
    tuned: tuple[TunedArm, ...]
    candidate: str | None
    folder: Path
    chat: Chat
    items: list[Item]
    train_items: list[Item]
    prepared: Prepared


def study(config: StudyConfig, *, screen: Screen | None = None) -> StudyResult:
    """Declare, ask, judge, write. Raises a `SapwoodError`; what was answered stays in the directory."""
    began, screen = time.perf_counter(), screen or Screen(quiet=True)
    setting = _setting(config, screen)
    name = setting.requirements.name if config.requirements else Path(setting.config.data[0]).stem
    with open_run(config.out or new_run_path(Path("runs"), f"study-{name}")) as run:
        _claim(run, setting)
        arms = _arms(setting, run, screen)
        skills = SkillArms(setting, run, screen, arms)
        declared = _declare(run, setting, arms, skills)
        _keep(run, setting)
        screen.title("Plan")
        screen.lines(declared.plan.lines_for_people())
        screen.say(f"Declared in {run.path}/plan.json as {declared.plan.hash}{'' if declared.before else ', AFTER answers were seen'}.")
        if config.plan_only:
            line = f"The plan is declared; nothing was asked. Go on with: sapwood study {run.path}"
            return StudyResult(run.path, declared, None, line, time.perf_counter() - began)
        labels = read_labels(config.labels, setting.requirements, declared.plan.arms, {item.id for item in setting.items})
        looks = _looks(setting, run)
        asked = ask_all(setting, arms, skills, run, screen)
        shipping = _judged(setting, declared.plan, asked.scores, asked.skills, labels)
        write_study(
            run,
            declared,
            shipping,
            asked.scores,
            setting.items,
            skills=asked.skills,
            training_seconds=next((one.training_seconds for one in setting.tuned if one.name == setting.candidate), 0.0),
            notes=[*asked.notes, *looks],
            labels=labels,
            texts=config.texts,
        )
    line = shipping.line if shipping is not None else "Nothing was tuned, so there is nothing to ship; the report compares the arms."
    return StudyResult(run.path, declared, shipping, line, time.perf_counter() - began)


def _setting(config: StudyConfig, screen: Screen) -> Setting:
    requirements = read_requirements(config.requirements) if config.requirements else Requirements(name="a gain")
    if not config.data:
        raise ConfigError("No data is named. Give runs or files: sapwood study runs/a runs/b --requirements requirements.yaml")
    tuned = tuned_arms(config.runs)
    candidate = _candidate(config.candidate, tuned)
    with screen.progress("reading") as advance:
        rows = scan_files(config.data, config.rows, advance, questions=True)
    folder = fetch_model(config.model, screen)
    chat = load_chat(folder, config.template, trained=tuned[0].folder if tuned else None, tools_in_system=config.tools_in_system)
    prepared = prepare_questions(rows, chat, config.rows, screen)
    if any(one.selects and one.data == config.data for one in tuned):
        prepared = set_apart(prepared, config.rows)
    for one in tuned:
        prepared = without_trained(one.folder, config.data, prepared)
    asked = prepared.held_out or prepared.train
    knobs = {"cluster": config.rows.cluster, "reference": config.rows.reference}
    items = items_from(conversations_among(asked), **knobs)
    train_items = items_from(conversations_among(prepared.train, LOOKED_UP), **knobs) if prepared.held_out else []
    for one in tuned:
        refuse_trained(one.folder, config.data, items)
    items = _seen(items, train_items)
    if not items:
        raise DataError("There is nothing to ask: no conversation among these rows has a question with an answer. Give other rows.")
    screen.lines([*prepared.notes, f"{len(items):,} items are asked"])
    return Setting(config, requirements, tuned, candidate, folder, chat, items, train_items, prepared)


def _seen(items: list[Item], train_items: list[Item]) -> list[Item]:
    """Items with a tag where their question stands in the training rows, so that scores with and without them are slices."""
    if not train_items:
        return items
    level = contamination([spoken_by_users(item) for item in train_items])
    found = [(item, level(spoken_by_users(item))) for item in items]
    if not any(how for _, how in found):
        return items
    return [replace(item, tags=(*item.tags, f"seen:{how}" if how else "unseen")) for item, how in found]


def _looks(setting: Setting, run: Run) -> list[str]:
    """Count a look at each test side of an item set, once a study however often it is named again, and say where that is one too many."""
    allowed, said, counted = setting.requirements.decision.looks, [], read_json(run.path / "looks.json")
    for file in map(Path, setting.config.data):
        folder = str(file.parent.resolve())
        if file.name == "test.jsonl" and folder not in counted and (count := looked(file.parent)):
            counted[folder] = count
            run.write_json("looks", counted)
        if counted.get(folder, 0) > allowed:
            said.append(
                f"The test side of {file.parent} has now been looked at {counted[folder]} times, and decision.looks allows {allowed}: what "
                "is chosen by it looks better than it is. Build a new set for the next decision."
            )
    return said


def _candidate(named: str | None, tuned: Sequence[TunedArm]) -> str | None:
    names = [one.name for one in tuned]
    if named is not None and named not in names:
        raise ConfigError(f"candidate is {named!r}; the tuned arms are: {', '.join(names) or 'none'}.")
    if named is None and len(names) > 1:
        raise ConfigError(
            f"There are {len(names)} tuned arms ({', '.join(names)}). Name the one that may be shipped with --candidate: the best of "
            "several on these very items looks better than it is."
        )
    return named or (names[0] if names else None)


def _arms(setting: Setting, run: Run, screen: Screen) -> Arms:
    """The arms' common part, with a scorer for each metric. Raises `ConfigError` where a metric has none."""
    scorers = {}
    for metric in setting.requirements.metrics:
        named = setting.config.evaluation.scorer if metric.scorer == "auto" else metric.scorer
        guess = scorer_for(replace(setting.config.evaluation, scorer=named), setting.items)
        if guess.scorer is None:
            raise ConfigError(f"metric {metric.name!r}: nothing can judge these answers ({guess.why}). Name a scorer in the requirements.")
        screen.say(f"{metric.name}: {guess.why}")
        scorers[metric.name] = guess.scorer
    primary = scorers.pop(setting.requirements.primary.name)
    evaluation = setting.config.evaluation if setting.train_items else replace(setting.config.evaluation, shots=())
    config = setting.config
    return Arms(
        setting.items, setting.train_items, setting.chat, primary, evaluation, run, screen, config.samples, config.temperature, scorers
    )


def _declare(run: Run, setting: Setting, arms: Arms, skills: SkillArms) -> Declared:
    config = setting.config
    free = [*FREE_ARMS] if setting.train_items else []
    few = ["few-shot"] if setting.train_items and arms.config.shots else []
    near = [f"retrieved {size}" for size in config.retrieved] if setting.train_items else []
    hosted = [HOSTED] if config.remote.hosted_url else []
    alternatives = (*free, PLAIN, *few, *near, *hosted)
    plan = Plan(
        requirements=setting.requirements,
        candidate=setting.candidate or "",
        arms=(*alternatives, *(one.name for one in setting.tuned)),
        alternatives=alternatives,
        base=PLAIN,
        items=questions("items", setting.items),
        general=skills.questions(),
        samples=config.samples,
        scorers=tuple(f"{metric.name}: {metric.scorer}" for metric in setting.requirements.metrics),
    )
    return declare(run, plan)


def _judged(setting: Setting, plan: Plan, scores: list[ArmScore], skills: list[Skills], labels: Labels) -> Shipping | None:
    if setting.candidate is None:
        return None
    found = list(dict.fromkeys(score.arm for score in over_samples(scores)))
    tuned = {one.name for one in setting.tuned}
    return ship(
        scores,
        setting.requirements,
        candidate=setting.candidate,
        alternatives=[arm for arm in found if arm not in tuned],
        tags={item.id: item.tags for item in setting.items},
        general=skills,
        labels=labels,
        scorer=plan.scorers[0],
    )


def _claim(run: Run, setting: Setting) -> None:
    """Make the directory this study's own. Raises `CheckpointError` if it holds something else, whose scores are not ours."""
    if (run.path / "config.yaml").exists() and not (run.path / "identity.json").exists():
        raise CheckpointError(f"{run.path} holds another run. Choose another folder with --out.")
    free = {"out", "texts", "labels", "plan_only", "max_cost", "remote", "requirements"}
    settings = hash_of({key: value for key, value in to_dict(setting.config).items() if key not in free})
    weights = hash_of_weights(setting.folder, *(one.folder for one in setting.tuned))
    claim(run, {"settings": settings, "template": setting.chat.fingerprint, "model": weights})


def _keep(run: Run, setting: Setting) -> None:
    """What the study goes on with if its directory is named again; written once its plan is known to be the one that stands there."""
    kept = replace(setting.config, out=run.path)
    if setting.config.requirements is not None:
        target = run.path / "requirements.yaml"
        if setting.config.requirements.resolve() != target.resolve():
            shutil.copyfile(setting.config.requirements, target)
        kept = replace(kept, requirements=target)
    save_yaml(replace(kept, plan_only=False), run.path / "config.yaml")
    run.replace("items", *item_records(setting.items))
