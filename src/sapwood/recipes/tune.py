"""`sapwood sft`: from a file of conversations to a model that is shown to be better, or is not.

In: files, a model, knobs. Out: a run directory with ledger, adapter, verdict and report.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.chat import Chat, named_template, trained_template
from sapwood.config import from_dict, load_yaml, save_yaml, to_dict
from sapwood.errors import CheckpointError, ConfigError, ModelError, StorageError
from sapwood.model import Dtype
from sapwood.model.processor import processor_or_reason
from sapwood.model.quantized import import_bitsandbytes
from sapwood.recipes.arms import EvalConfig
from sapwood.recipes.chain import TuneResult, prove
from sapwood.recipes.identity import claim, hash_of, hash_of_weights
from sapwood.recipes.live import WatchConfig
from sapwood.recipes.plan import plan_of
from sapwood.recipes.plan_lines import gib, short_lines
from sapwood.recipes.prepare import DataConfig, Prepared, prepare, scan_files, set_apart
from sapwood.recipes.screen import Screen
from sapwood.recipes.track import require_services
from sapwood.records import hash_of_rows
from sapwood.run import Run, new_run_path, open_run, read_json, require_known
from sapwood.train import SftConfig
from sapwood.train.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Supervised fine-tuning with its proof."""

    data: tuple[str, ...] = ()
    """Files of rows (JSON Lines, CSV, Parquet, …), folders or patterns of them, or data sets by name, here or on the hub.
    `'a.jsonl*2' 'b.jsonl*0.5'` trains the rows of a twice an epoch, and of b every second one.
    """
    from_review: tuple[str, ...] = ()
    """Review databases, such as `runs/review.db`: the answers that experts corrected are trained beside the data.
    They are written to a file that bears the hash of its rows, which the run then names under `data`.
    """
    model: str = DEFAULT_MODEL
    """A name (`sapwood pull` lists them), a local folder, or a hub id."""
    template: str | None = None
    """A chat template for a model that has none or should use another: `chatml`, `plain`, or a Jinja file."""
    tools_in_system: bool = False
    """Offer tools in the system message, and write calls and results as text: for a template that has no place for tools."""
    out: Path | None = None
    """The run directory; `runs/NAME-1`, `-2`, … where not given. A run that was stopped goes on if named again."""
    dtype: Dtype = "auto"
    """Type of the base weights: bf16 where the processor computes in it, else fp32; `nf4` keeps 4 bits of each (arXiv:2305.14314)."""
    rows: DataConfig = field(default_factory=DataConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    train: SftConfig = field(default_factory=SftConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    @property
    def selects(self) -> bool:
        """Whether some of the held-out rows choose, and the others judge."""
        return self.train.selects or self.rows.choosing is not None


def tune(config: TuneConfig, *, screen: Screen | None = None) -> TuneResult:
    """Fine-tune and prove. Raises a `SapwoodError` that says what to do; what was finished stays in the run directory."""
    screen = screen or Screen(quiet=True)
    config = with_corrections(config)
    if not config.data:
        raise ConfigError("No data is named. Give a file of conversations: sapwood sft my.jsonl")
    require_services(config.watch.track)
    if config.dtype == "nf4":
        import_bitsandbytes("--dtype nf4")
    with screen.progress("reading") as advance:  # first: a broken file should cost a second, not a download
        rows = scan_files(config.data, config.rows, advance, weighted=True)
    folder = fetch_model(config.model, screen)
    chat = load_chat(folder, config.template, day_of(config.out), tools_in_system=config.tools_in_system)
    prepared = prepare(rows, chat, config.rows, screen)
    if config.selects:
        prepared = set_apart(prepared, config.rows)
    run, config = start_run(config, screen)
    with run:
        hashes = hash_of([hash_of_rows(prepared.examples), hash_of_rows(prepared.held_out_examples)])
        claim(run, {"rows": hashes, "template": chat.fingerprint, "model": hash_of_weights(folder)})
        save_yaml(config, run.path / "config.yaml")  # not before: a directory that is refused stays as it was
        screen.say(f"Run directory: {run.path}")
        return prove(
            folder,
            chat,
            prepared,
            rows=config.rows,
            evaluation=config.evaluation,
            train=config.train,
            dtype=config.dtype,
            run=run,
            screen=screen,
            watch=config.watch,
            expected=_foretold(folder, chat, prepared, config, run, screen),
        )


def with_corrections(config: TuneConfig) -> TuneConfig:
    """With the corrected answers of review databases as files among the data."""
    if not config.from_review:
        return config
    try:
        from sapwood.recipes.review import corrected_rows
    except ImportError as error:
        raise ConfigError(f"from_review needs {error.name}, which is not installed: pip install 'sapwood[web]'") from None
    return replace(config, data=(*config.data, *corrected_rows(config.from_review)), from_review=())


def _foretold(folder: Path, chat: Chat, prepared: Prepared, config: TuneConfig, run: Run, screen: Screen) -> Estimate | None:
    """Say what the run will take, before anything is loaded; what is said is compared with the worst-case step. None where unknown."""
    if not prepared.examples or any((run.path / "checkpoints").glob("step-*")):  # the latter was told when the run began
        return None
    try:
        with screen.progress("measuring a few layers"):
            made = plan_of(folder, chat, prepared, config.train, config.dtype, out=config.out)
    except ModelError as error:
        screen.say(f"No plan: {error}")
        return None
    screen.title("Plan")
    screen.lines(short_lines(made))
    if made.disk.written > made.disk.free:
        raise StorageError(
            f"{run.path}: checkpoints and result take {gib(made.disk.written)} there, and {gib(made.disk.free)} are free. Free some space, "
            "name another disk with --out, or keep fewer checkpoints (--keep 1)."
        )
    return made.foretold


def start_run(config: TuneConfig, screen: Screen) -> tuple[Run, TuneConfig]:
    """Open the run directory, and resolve the config against the one that lies there. Raises `CheckpointError` if it is another run's.

    Nothing is written but the mark of a new directory.
    """
    name = Path(config.data[0]).stem if config.data else "run"
    out = config.out or new_run_path(Path("runs"), name)
    config = replace(config, out=out)
    run = open_run(out)
    saved = out / "config.yaml"
    if saved.exists():
        before = load_yaml(TuneConfig, saved)
        old, new = flat(to_dict(before)), flat(to_dict(config))
        turned = {key: f"{key}: {old[key]} there, {new[key]} now" for key in new if new[key] != old[key]}
        free = {f"train.{name}" for name in set(before.train.may_change) & set(config.train.may_change)}
        changed = [words for key, words in turned.items() if key not in free and not key.startswith("watch.")]
        if changed:
            run.close()
            raise CheckpointError(
                f"{out} holds a run with other settings ({'; '.join(changed)}). Continue it with `sapwood sft {out}` alone, "
                "or choose another folder with --out."
            )
        if turned:
            screen.say(f"The run goes on with another setting of what does not change its result ({'; '.join(turned.values())}).")
    return run, config


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def config_of(run: Path) -> TuneConfig:
    """The config of a training run. Raises `ConfigError` where the folder holds an evaluation, `CheckpointError` for a newer version."""
    require_known(run)
    if not (run / "config.yaml").is_file():
        if not run.exists():
            raise ConfigError(f"{run}: no such run directory. Name one that `sapwood sft` has left, such as runs/my-1.")
        found = "is a model's folder" if (run / "config.json").is_file() else "holds no config.yaml"
        raise ConfigError(f"{run} {found}, so it is no run. Name a directory that `sapwood sft` has left, such as runs/my-1.")
    if (run / "items.jsonl").exists() and not (run / "ledger.jsonl").exists():
        raise ConfigError(f"{run} holds an evaluation, not a training run. Name the run whose model was evaluated.")
    found = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return _of_another_loop(found) if isinstance(found, dict) and "start_from" in found else load_yaml(TuneConfig, run / "config.yaml")


def _of_another_loop(found: dict[str, Any]) -> TuneConfig:
    """What a run of `sapwood dpo` or `grpo` shares with one of SFT: its model, template and rows, and whether it trained all weights."""
    start = found["start_from"]
    return TuneConfig(
        data=tuple(found["data"]),
        model=start["model"],
        template=start["template"],
        dtype=start["dtype"],
        rows=from_dict(DataConfig, found["rows"], "rows"),
        train=SftConfig(full=found["train"]["full"]),
    )


def fetch_model(name: str, screen: Screen, *, weights: bool = True) -> Path:
    """The model's folder, with a progress bar where something has to be fetched; its weights are left out where nobody needs them."""
    with screen.progress(f"model {name}") as advance:
        return resolve_model(name, weights=weights, report=advance)


def day_of(run: Path | None) -> datetime | None:
    """The day on which a run was begun: where a template writes the date, its rows must hold that day's again to go on."""
    day = read_json(run / "environment.json").get("today") if run is not None else None
    return datetime.fromisoformat(day) if day else None


def load_chat(
    folder: Path, template: str | Path | None, today: datetime | None = None, *, trained: Path | None = None, tools_in_system: bool = False
) -> Chat:
    """The model's chat, with its own template, or one by name or from a file.

    `trained` is the folder of an adapter or a whole model that was trained with a template that was given: the template that
    lies there goes before `template`, whose file may have changed since.
    """
    text = trained_template(trained, folder) if trained is not None else None
    if text is None and template is not None:
        text = named_template(template, folder)
    chat = Chat.load(folder, template=text, today=today).with_media(processor_or_reason(folder))
    return chat.with_tools_in_system() if tools_in_system else chat
