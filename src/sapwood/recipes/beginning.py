"""How runs of preference tuning and reinforcement learning begin: the directory, the model, its adapter.

In: a verb's config. Out: an open run whose settings are written down, and a model with the adapter that it starts from. What SFT needs
beyond that stands in `tune`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sapwood import kernels
from sapwood.chat import Chat
from sapwood.config import load_yaml, save_yaml, to_dict
from sapwood.data import Ledger
from sapwood.errors import CheckpointError, ConfigError
from sapwood.model import Dtype, LanguageModel, learn_tokens, load_adapter, load_model
from sapwood.recipes.chain import type_and_place
from sapwood.recipes.prepare import DataConfig
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import day_of, fetch_model, flat, load_chat
from sapwood.run import Run, new_run_path, open_run, require_known

RECORDS_A_WRITE = 10_000


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Which model is trained, and where the run goes."""

    model: str = ""
    """A name (`sapwood pull` lists them), a local folder, or a hub id; where not given, that of `start`, else the default model."""
    start: Path | None = None
    """A run (or its adapter) to go on training from: its state before step 1 is the reference."""
    template: str | None = None
    """A chat template for a model that has none or should use another: `chatml`, `plain`, or a Jinja file."""
    dtype: Dtype = "auto"
    """Type of the base weights: bf16 where the processor computes in it, else fp32."""


C = TypeVar("C", bound="RunConfig")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every such verb has."""

    data: tuple[str, ...] = ()
    """Files of rows (JSON Lines, CSV, Parquet, …), folders or patterns of them, or data sets by name, here or on the hub."""
    out: Path | None = None
    """The run directory; `runs/NAME-1`, `-2`, … where not given. A run that was stopped goes on if named again."""
    start_from: StartConfig = field(default_factory=StartConfig)
    rows: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Opened:
    """A model ready to train, and its chat."""

    folder: Path
    chat: Chat
    adapter: Path | None
    config: StartConfig
    """With the names of model and template resolved, so that the run's directory says by itself whose adapter it holds."""

    def load(self, screen: Screen) -> LanguageModel:
        """The weights; with the adapter that the run starts from, which is trained on."""
        model = load_model(self.folder, self.config.dtype)
        screen.say(type_and_place(model))
        tokens = learn_tokens(model, self.chat.new_tokens.values(), self.chat.known_tokens.values()) if self.adapter is None else []
        for note in (*model.notes, *self.chat.notes, *self.chat.warnings, *tokens):
            screen.say(note)
        kernels.prepare(model.dtype, screen.say)
        if self.adapter is not None:
            model = load_adapter(model, self.adapter, trainable=True)
            screen.say(f"Going on from {self.adapter}: its state now is the reference.")
        return model


def opened(config: StartConfig, default: str, out: Path | None, screen: Screen) -> Opened:
    """Fetch the model and read its chat. Raises `ConfigError` where `start` holds nothing that was trained."""
    name, template, adapter = config.model, config.template, None
    if config.start is not None:
        places = [place for place in (config.start / "adapter", config.start) if (place / "adapter_config.json").is_file()]
        whole = next((place for place in (config.start / "model", config.start) if (place / "config.json").is_file()), None)
        if not places and whole is None:
            raise ConfigError(f"start is {config.start}, which holds no adapter and no model. Name a run directory, or its adapter folder.")
        before = _settings_of(config.start)
        if places:
            adapter = places[0]
            name, template = name or str(before.get("model") or ""), template or before.get("template")
            if not name:
                raise ConfigError(f"start is {config.start}, which does not say whose adapter it is. Name its base model with --model.")
        else:
            name = str(whole)
    folder = fetch_model(name or default, screen)
    resolved = replace(config, model=name or default, template=template)
    return Opened(folder, load_chat(folder, template, day_of(out), trained=adapter), adapter, resolved)


def _settings_of(start: Path) -> dict[str, Any]:
    """The model and template that a run was started with."""
    file = next((place / "config.yaml" for place in (start, start.parent) if (place / "config.yaml").is_file()), None)
    if file is None:
        return {}
    require_known(file.parent)
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        return {}
    return {**found, **(found.get("start_from") or {})}


def begin(config: C, verb: str, free: Sequence[str], screen: Screen) -> tuple[Run, C]:
    """Open the run directory and write the resolved config. Raises `CheckpointError` if it is another run's.

    `free` are dotted keys that a run which goes on may turn.
    """
    out = config.out or new_run_path(Path("runs"), f"{verb}-{Path(config.data[0]).stem if config.data else 'run'}")
    config = replace(config, out=out)
    run = open_run(out)
    saved = out / "config.yaml"
    if saved.exists():
        try:
            old, new = flat(to_dict(load_yaml(type(config), saved))), flat(to_dict(config))
        except ConfigError:
            run.close()
            raise CheckpointError(f"{out} holds a run of another verb than {verb}. Choose another folder with --out.") from None
        changed = [f"{key}: {old.get(key)} there, {new[key]} now" for key in new if new[key] != old.get(key) and key not in free]
        if changed:
            run.close()
            raise CheckpointError(
                f"{out} holds a run with other settings ({'; '.join(changed)}). Continue it with `sapwood {verb} {out}` alone, or choose "
                "another folder with --out."
            )
    save_yaml(config, saved)
    screen.say(f"Run directory: {out}")
    return run, config


def base_config(kind: type[C], verb: str, names: Sequence[str]) -> C:
    """The config that flags are laid over: files of data, a saved config (in a new run directory), or a run to go on with."""
    if len(names) == 1:
        path = Path(names[0])
        if path.suffix in (".yaml", ".yml"):
            if not path.exists():
                raise ConfigError(f"{path}: no such file. Name a config.yaml that a run has left, or give your data.")
            require_known(path.parent)
            return replace(load_yaml(kind, path), out=None)
        if (path / "config.yaml").is_file():
            require_known(path)
            try:
                return replace(load_yaml(kind, path / "config.yaml"), out=path)
            except ConfigError as error:
                raise ConfigError(f"{path} is no run of `sapwood {verb}`: {error}") from None
    return kind(data=tuple(names))


def write_ledger(run: Run, ledger: Ledger, notes: Sequence[str], screen: Screen) -> None:
    """Show where every row went, and keep it in the run."""
    screen.title("Rows")
    screen.lines([*notes, *ledger.lines_for_people()])
    run.clear("ledger")
    records = ledger.records()
    while batch := list(itertools.islice(records, RECORDS_A_WRITE)):
        run.append("ledger", *batch)
