"""`sapwood sweep`: a small grid over knobs of the training, each point a run of its own, one table at the end.

    rows → held-out rows in two halves → for each point: a run (`tune`), watched on one half, judged on the other → table

The half whose loss chooses the winner never judges it: the best of k looks better than it is by the very numbers that chose it.
All points have the same rows, halves and base arms; the base arms are asked once. A sweep that was stopped goes on where it was if
its directory is named again, and a finished point is never trained again.
Left out on purpose: choosing by score (the half that chooses is not asked, it is only read), knobs that change the rows or the
questions (points could not be compared), and search: a grid that one can read is what few points are good for.
"""

from __future__ import annotations

import itertools
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import yaml

from sapwood.config import did_you_mean, from_dict, known_keys, to_dict, with_knobs
from sapwood.errors import CheckpointError, ConfigError, storage
from sapwood.evaluate import ArmScore, scores_from
from sapwood.evaluate.report_files import mapping, number, read_run
from sapwood.recipes.arms import TUNED
from sapwood.recipes.runs import SWEEP, facts_of
from sapwood.recipes.screen import Screen
from sapwood.recipes.standings import Point, Standings, standings
from sapwood.recipes.tune import TuneConfig, flat, tune
from sapwood.run import Run, new_run_path, open_run, read_records, require_known

CHOOSING = 0.5
"""Share of the held-out rows that choose the winner, unless another is asked for."""
NO_RESULT = ("train.budget", "train.eval_every", "train.save_every", "train.keep", "train.checkpointing")
"""Knobs of speed, space and looking on: points that differ in them alone would be the same model."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid. All options of `sapwood sft` are taken, too; they hold for every point."""

    over: tuple[str, ...] = ()
    """Knobs of the training and their values, such as `lr=1e-4,3e-4 lora.r=8,16`; `+` joins a list, as in `targets=q_proj+v_proj`."""
    tune: TuneConfig = field(default_factory=TuneConfig)


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep."""

    path: Path
    standings: Standings
    next: tuple[str, ...]
    """Commands for the winner."""
    seconds: float

    def summary(self) -> dict[str, Any]:
        """For machines."""
        return {"sweep": str(self.path), **self.standings.to_dict(), "next": list(self.next), "seconds": round(self.seconds, 1)}

    def __str__(self) -> str:
        return "\n".join([str(self.path), *self.standings.sentences])


def sweep(config: SweepConfig, *, screen: Screen | None = None) -> SweepResult:
    """Train every point of the grid, then say which is best, and how sure that is. Raises a `SapwoodError` that says what to do."""
    began, screen = time.monotonic(), screen or Screen(quiet=True)
    if not config.tune.data:
        raise ConfigError("No data is named. Give a file of conversations: sapwood sweep my.jsonl --over lr=1e-4,3e-4")
    grid = grid_of(config.over)
    base = _base(config.tune)
    knobs = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for chosen in knobs:
        with_knobs(base, chosen)  # a value that cannot be should stop the sweep before its first point, not before its last
    with open_run(config.tune.out or new_run_path(Path("runs"), f"sweep-{Path(config.tune.data[0]).stem}")) as run:
        _begin(run, base, config.over, knobs)
        screen.say(f"Sweep: {run.path}, {len(knobs)} points over {', '.join(grid)}")
        points, taken = [], list[float]()
        for place, chosen in enumerate(knobs):
            started = time.monotonic()
            left = sum(not _is_finished(_place(run.path, other)) for other in knobs[place:])
            clock = f", about {_minutes(left * sum(taken) / len(taken))} left" if taken and left else ""
            screen.title(f"Point {place + 1} of {len(knobs)}: {name_of(chosen)}{clock}")
            if _train(run.path, base, chosen, knobs, screen):
                taken.append(time.monotonic() - started)
            points.append(_point(run.path, chosen))
            _write(run, base, config.over, knobs, [*points], None)
        table = standings(points)
        _write(run, base, config.over, knobs, points, table)
    return SweepResult(run.path, table, _next(run.path, table), time.monotonic() - began)


def config_for(names: tuple[str, ...]) -> SweepConfig:
    """For files of rows, or for the directory of a sweep, to go on with it. Raises `CheckpointError` for a newer version."""
    if len(names) != 1 or not (Path(names[0]) / SWEEP).is_file():
        return SweepConfig(tune=TuneConfig(data=names))
    path = Path(names[0])
    require_known(path)
    saved = _read(path)
    made = from_dict(SweepConfig, {"over": saved.get("over"), "tune": saved.get("tune")}, str(path / SWEEP))
    return replace(made, tune=replace(made.tune, out=path))


def as_over(grid: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """A grid as it is written on the command line."""
    return tuple(
        f"{name}={','.join(_shown(list(value) if isinstance(value, tuple) else value) for value in values)}"
        for name, values in grid.items()
    )


def grid_of(over: tuple[str, ...]) -> dict[str, list[Any]]:
    """Knob → values, by dotted key. Raises `ConfigError` for what is no knob of the training, has no values, or repeats."""
    if not over:
        raise ConfigError("Nothing to sweep over. Name knobs and values: --over lr=1e-4,3e-4 lora.r=8,16")
    grid: dict[str, list[Any]] = {}
    for text in over:
        name, _, listed = text.partition("=")
        key = _key(name.strip())
        values = [_value(entry) for entry in listed.split(",") if entry.strip()]
        if not values:
            raise ConfigError(f"--over {text}: give values behind `=`, with commas between them, such as {name or 'lr'}=1e-4,3e-4.")
        if key in grid or len({str(value) for value in values}) < len(values):
            raise ConfigError(f"--over {text}: a knob or a value is named twice. Give each once.")
        grid[key] = values
    return grid


def name_of(chosen: dict[str, Any]) -> str:
    """A point in words: the knobs without the room they lie in, and their values."""
    return " ".join(f"{key.rsplit('.', 1)[-1]}={_shown(value)}" for key, value in chosen.items())


def _key(name: str) -> str:
    known = known_keys(TuneConfig)
    found = [key for key in known if key == name or key.endswith(f".{name.replace('-', '_')}")] if name else []
    if len(found) != 1:
        trained = [key.rsplit(".", 1)[-1] for key in known if key.startswith("train.") and key not in NO_RESULT]
        near = did_you_mean(name.rsplit(".", 1)[-1], trained)
        raise ConfigError(f"--over {name}: there is no such knob.{near} All of them: sapwood sft --help")
    if not found[0].startswith("train."):
        raise ConfigError(
            f"--over {name}: this changes rows, model or questions, and points that differ in them cannot be compared here. Start two runs "
            "instead, and lay them side by side with `sapwood runs compare`."
        )
    if found[0] in NO_RESULT:
        raise ConfigError(f"--over {name}: this changes time or space and not what is trained, so all points would be the same model.")
    return found[0]


def _value(text: str) -> Any:
    if "+" in text.strip()[1:] and not re.fullmatch(r"[-+\d.]+e\+\d+", text.strip()):
        return [_value(part) for part in text.split("+")]
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text.strip()


def _shown(value: Any) -> str:
    return "+".join(map(_shown, value)) if isinstance(value, list) else str(value)


def _base(config: TuneConfig) -> TuneConfig:
    return replace(config, out=None, rows=replace(config.rows, choosing=config.rows.choosing or CHOOSING))


def _place(path: Path, chosen: dict[str, Any]) -> Path:
    """The run directory of a point."""
    return path / "points" / re.sub(r"[^\w.+=-]+", "_", name_of(chosen))


def _begin(run: Run, base: TuneConfig, over: tuple[str, ...], knobs: list[dict[str, Any]]) -> None:
    """Write the sweep's own record, or compare with it. Another grid over the same settings is welcome: what is trained stays."""
    if not (run.path / SWEEP).is_file():
        if (run.path / "config.yaml").exists():
            raise CheckpointError(f"{run.path} holds a run. Choose another folder for the sweep with --out.")
        _write(run, base, over, knobs, [], None)
        return
    old, new = flat(mapping(_read(run.path).get("tune"))), flat(to_dict(base))
    changed = [f"{key}: {old.get(key)} there, {new[key]} now" for key in new if old.get(key) != _plain(new[key])]
    if changed:
        raise CheckpointError(
            f"{run.path} holds a sweep with other settings ({'; '.join(changed)}). Go on with `sapwood sweep {run.path}` alone, or "
            "choose another folder with --out."
        )


def _plain(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


def _read(path: Path) -> dict[str, Any]:
    with storage(path / SWEEP, "read"):
        try:
            return mapping(orjson.loads((path / SWEEP).read_bytes()))
        except orjson.JSONDecodeError:
            raise CheckpointError(
                f"{path / SWEEP}: damaged. Delete the file, and start the sweep with its files and --out {path}."
            ) from None


def _write(
    run: Run, base: TuneConfig, over: tuple[str, ...], knobs: list[dict[str, Any]], points: list[Point], table: Standings | None
) -> None:
    content: dict[str, Any] = {"tune": to_dict(base), "over": list(over), "points": [name_of(chosen) for chosen in knobs]}
    content["table"] = [{"name": point.name, "loss": point.loss, "run": point.run.name} for point in points]
    content["winner"] = {"name": table.winner.name, "loss": table.winner.loss} if table is not None else {}
    run.write_json(SWEEP.removesuffix(".json"), content)


def _is_finished(place: Path) -> bool:
    return place.is_dir() and (place / "config.yaml").is_file() and facts_of(place).state == "finished"


def _train(path: Path, base: TuneConfig, chosen: dict[str, Any], knobs: list[dict[str, Any]], screen: Screen) -> bool:
    """Train a point, or go on with it; False where it was finished before."""
    place = _place(path, chosen)
    if _is_finished(place):
        screen.say("It is finished.")
        return False
    _hand_on_base_arms(place, [_place(path, other) for other in knobs])
    tune(replace(with_knobs(base, chosen), out=place), screen=screen)
    return True


def _hand_on_base_arms(place: Path, points: list[Path]) -> None:
    """Give a new point the base arms' answers of a finished one: same rows, same model, same questions, so the same answers."""
    done = next((other for other in points if other != place and _is_finished(other)), None)
    if done is None or (place / "scores.jsonl").exists():
        return
    with open_run(place) as run:
        run.append("scores", *(record for record in read_records(done / "scores.jsonl") if record["arm"] != TUNED))


def _point(path: Path, chosen: dict[str, Any]) -> Point:
    """What a finished point reached: its loss on the choosing rows, and its answers to the others."""
    place = _place(path, chosen)
    files = read_run(place, only=("metrics.jsonl", "scores.jsonl"))
    evals = [record for record in files.metrics if record.get("kind") == "eval" and number(record.get("loss")) is not None]
    assert evals, "a run with choosing rows evaluates them"
    trained = mapping(files.config.get("train"))
    chose = bool(trained.get("keep_best") or trained.get("patience"))
    record = min(evals, key=lambda one: float(one["loss"])) if chose else evals[-1]
    scores: list[ArmScore] = [score for score in scores_from(files.scores) if score.arm == TUNED]
    return Point(name_of(chosen), place, chosen, float(record["loss"]), tuple(record.get("parts") or ()), tuple(scores))


def _next(path: Path, table: Standings) -> tuple[str, ...]:
    winner = shlex.quote(str(table.winner.run))
    flags = " ".join(
        f"--{key.rsplit('.', 1)[-1].replace('_', '-')} {_shown(value).replace('+', ' ')}" for key, value in table.winner.knobs.items()
    )
    return (f"sapwood chat {winner}", f"sapwood sft FILES {flags}", f"sapwood runs {shlex.quote(str(path))}")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
