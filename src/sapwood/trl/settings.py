"""TRL's options and peft's adapters → the knobs of Sapwood's own loop.

In: an `SFTConfig`, a `peft.LoraConfig`, the number of rows. Out: `train.SftConfig`, `model.LoraConfig`, and how often progress
is told. The schedules are transformers' own, step for step, but for the warm-up: theirs begins with a step at rate 0, which
trains nothing; here the first step has the first share of the rate.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import peft
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.model import LoraConfig
from sapwood.recipes.track import Service, require_services
from sapwood.train import DpoConfig, GrpoConfig, OptimConfig, SftConfig
from sapwood.train.order import num_steps
from sapwood.trl.config import SFTConfig
from sapwood.trl.options import Options

OPTIMIZERS: Mapping[str, str] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "adamw"),
    "adafactor": "adafactor",
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw8bit"),
}
"""transformers' name → ours."""
NEVER = 10**9
"""As a number of steps or checkpoints: more than any run has."""


Loop = TypeVar("Loop", SftConfig, GrpoConfig, DpoConfig)


@dataclass(frozen=True)
class Settings(Generic[Loop]):
    """What a run does."""

    train: Loop
    steps: int
    log_every: int
    """Steps between lines of progress; `NEVER` for none."""
    evaluates: bool
    """Whether held-out rows are evaluated while training."""
    track: tuple[Service, ...]


def settings(
    args: SFTConfig, rows: int, *, full: bool, lora: LoraConfig | None, notes: list[str], patience: int = 0
) -> Settings[SftConfig]:
    """The run that `args` describe, on so many rows. Raises `ConfigError` by TRL's names.

    `patience` is an EarlyStoppingCallback's: evaluations without a lower loss after which the run ends.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if batch < 1:
        raise ConfigError(
            f"per_device_train_batch_size is {args.per_device_train_batch_size} and gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps}; give at least 1 each."
        )
    if batch > rows:
        notes.append(f"A step would take {batch} rows and there are {rows}; it takes each of them once.")
        batch = rows
    if not 0 < args.num_train_epochs < math.inf:
        raise ConfigError(f"num_train_epochs is {args.num_train_epochs}; give a number above 0.")
    steps = args.max_steps if args.max_steps > 0 else num_steps(rows, batch, args.num_train_epochs)
    epoch = max(1, round(rows / batch))
    every = intervals(args, steps, epoch)
    if args.max_steps > 0 and "num_train_epochs" not in args.given and steps * batch > args.num_train_epochs * rows:
        notes.append(f"max_steps={steps} goes through the {rows:,} rows {steps * batch / rows:.1f} times.")
    train = named(
        SftConfig,
        epochs=float(args.num_train_epochs),
        max_steps=steps if args.max_steps > 0 else None,
        batch=batch,
        seed=args.seed,
        eval_every=every["eval"],
        save_every=every["save"],
        keep=args.save_total_limit or NEVER,
        keep_best=_chooses(args, patience, notes),
        patience=patience,
        checkpointing=bool(args.gradient_checkpointing or args.activation_checkpointing),
        full=full,
        lora=lora or LoraConfig(),
        optim=optimizer(args, steps, notes),
    )
    return Settings(train, steps, every["logging"], args.eval_strategy != "no" or args.eval_on_start, services(args, notes))


def services(args: Options, notes: list[str]) -> tuple[Service, ...]:
    """Who is told of the run. Raises `ConfigError` for a service that Sapwood does not know, or whose package is missing."""
    asked = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or ())
    if "all" in asked:
        notes.append("report_to='all': name the services; none is told of a run that was not named. metrics.jsonl holds everything.")
    known: tuple[Service, ...] = typing.get_args(Service)
    for service in asked:
        if service not in ("none", "all", *known):
            raise ConfigError(
                f"report_to={service!r} cannot be honoured by this version. Allowed: 'none', {', '.join(map(repr, known))}; metrics.jsonl "
                "holds everything."
            )
    named = tuple(service for service in known if service in asked)
    require_services(named)
    return named


def _chooses(args: SFTConfig, patience: int, notes: list[str]) -> bool:
    """Whether the result is the state with the lowest held-out loss. Raises `ConfigError` where nothing is evaluated to choose by."""
    if patience and not args.load_best_model_at_end:
        raise ConfigError("EarlyStoppingCallback needs load_best_model_at_end=True, here as in transformers. Give it, or leave both out.")
    if not args.load_best_model_at_end and args.save_strategy != "best":
        return False
    name = "load_best_model_at_end=True" if args.load_best_model_at_end else "save_strategy='best'"
    if args.eval_strategy == "no":
        raise ConfigError(f"{name} chooses among evaluations, and there are none. Give eval_strategy='steps' or 'epoch', and eval_dataset.")
    if not args.load_best_model_at_end:
        notes.append(f"{name}: the best checkpoint is kept, and train() leaves that state, as load_best_model_at_end does.")
    return True


def optimizer(args: Options, steps: int, notes: list[str]) -> OptimConfig:
    """The optimizer and schedule of `args`, for so many steps. Raises `ConfigError` by TRL's names."""
    name = str(args.optim)
    if name not in OPTIMIZERS:
        known = list(OPTIMIZERS)
        raise ConfigError(f"optim is {name!r}; allowed are {', '.join(known)}.{did_you_mean(name, known)}")
    if name.startswith("paged"):
        notes.append(f"optim={name!r}: the moments are kept in 8 bits, and not paged out.")
    warmup = _warmup(args, steps)
    knobs: dict[str, Any] = {"optimizer": OPTIMIZERS[name], **_schedule(args, steps, warmup, notes)}
    if OPTIMIZERS[name] != "adafactor" or args.given.keys() & {"adam_beta1", "adam_beta2", "adam_epsilon"}:
        knobs |= {"beta1": float(args.adam_beta1), "beta2": float(args.adam_beta2), "eps": float(args.adam_epsilon)}
    return named(  # type: ignore[no-any-return]
        OptimConfig,
        lr=float(args.learning_rate),
        warmup=warmup / steps,
        weight_decay=float(args.weight_decay),
        max_grad_norm=float(args.max_grad_norm or 0.0),
        **knobs,
    )


def _warmup(args: Options, steps: int) -> int:
    """Steps of the warm-up."""
    asked = args.warmup_steps
    if not 0 <= asked < math.inf:
        raise ConfigError(f"warmup_steps is {asked}; give a number of steps, or a share of all steps below 1.")
    return min(steps, math.ceil(asked * steps) if asked < 1 else int(asked))


def _schedule(args: Options, steps: int, warmup: int, notes: list[str]) -> dict[str, Any]:
    """The schedule's knobs: transformers reaches the end of a line or a cosine one step behind the last."""
    name, options = str(args.lr_scheduler_type), dict(args.lr_scheduler_kwargs or {})
    left = max(1, steps - warmup)
    taken = _SCHEDULES.get(name, ())
    if name not in _SCHEDULES:
        raise ConfigError(f"lr_scheduler_type is {name!r}; allowed are {', '.join(_SCHEDULES)}.{did_you_mean(name, list(_SCHEDULES))}")
    if set(options) - set(taken):
        what = f"takes {' and '.join(taken)}" if taken else "takes none"
        raise ConfigError(f"lr_scheduler_kwargs={options!r}: {name} {what} here. Leave the others out.")
    if name == "linear":
        return {"schedule": "linear", "final": 1 / left}
    if name == "cosine":
        return {"schedule": "cosine", "final": (1 + math.cos(math.pi * (left - 1) / left)) / 2}
    if name == "cosine_with_min_lr":
        return {"schedule": "cosine", "final": float(options.get("min_lr_rate", 0.0))}
    if name == "warmup_stable_decay":
        if "num_decay_steps" not in options:
            raise ConfigError("lr_scheduler_type='warmup_stable_decay' needs lr_scheduler_kwargs={'num_decay_steps': …}.")
        share = min(1.0, options["num_decay_steps"] / steps)
        return {"schedule": "wsd", "decay": share, "final": float(options.get("min_lr_ratio", 0.0))}
    if name == "constant" and warmup:
        notes.append(
            f"lr_scheduler_type='constant' leaves the warm-up out in transformers, without a word; here its {warmup} "
            f"step{'s are' if warmup > 1 else ' is'} taken, as with 'constant_with_warmup'."
        )
    return {"schedule": "constant"}


_SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": (),
    "constant": (),
    "constant_with_warmup": (),
    "cosine_with_min_lr": ("min_lr_rate",),
    "warmup_stable_decay": ("num_decay_steps", "min_lr_ratio"),
}
"""transformers' name → options that are honoured."""


def intervals(args: Options, steps: int, epoch: int) -> dict[str, int]:
    """Steps between lines of progress (`logging`), evaluations (`eval`) and checkpoints (`save`); `NEVER` for none."""
    return {
        "logging": interval("logging_steps", args.logging_strategy, args.logging_steps, steps, epoch),
        "eval": interval("eval_steps", args.eval_strategy, args.eval_steps or args.logging_steps, steps, epoch),
        "save": interval("save_steps", args.save_strategy, args.save_steps, steps, epoch),
    }


def interval(name: str, strategy: str, asked: float, steps: int, epoch: int) -> int:
    """Steps between two events."""
    if strategy in ("no", "best"):
        return NEVER
    if strategy == "epoch":
        return epoch
    if not 0 < asked < math.inf:
        raise ConfigError(f"{name} is {asked}; give a number of steps, or a share of all steps below 1.")
    return max(1, math.ceil(asked * steps) if asked < 1 else int(asked))


def adapter(given: Any, model_type: str, notes: list[str]) -> LoraConfig:
    """peft's configuration of an adapter as ours. Raises `ConfigError` for what Sapwood's LoRA does not have."""
    if not isinstance(given, peft.LoraConfig) or type(given) is not peft.LoraConfig:
        raise ConfigError(
            f"peft_config is a {type(given).__name__}. Give a peft.LoraConfig. Another method that changes linear layers (IA3, VeRA, …) "
            "is trained if you wrap the model yourself: model = peft.get_peft_model(model, config), and leave peft_config out."
        )
    if given.inference_mode:
        raise ConfigError("peft_config has inference_mode=True, so nothing of it would be trained. Leave it out.")
    if str(getattr(given.task_type, "value", given.task_type)) not in ("CAUSAL_LM", "None"):
        raise ConfigError(f"peft_config has task_type={given.task_type!r}. A language model that writes takes 'CAUSAL_LM'.")
    ours: dict[str, Any] = {"r": given.r, "alpha": float(given.lora_alpha), "rslora": given.use_rslora}
    ours["targets"] = _targets(given.target_modules, model_type, notes)
    has = {field.name for field in dataclasses.fields(LoraConfig)}
    plain = peft.LoraConfig()
    handled = {"r", "lora_alpha", "use_rslora", "target_modules", "task_type", "inference_mode", *_SAME}
    for name, (own, convert) in _SAME.items():
        value = getattr(given, name)
        if own in has:
            ours[own] = convert(value)
        elif value != getattr(plain, name):
            raise ConfigError(f"LoraConfig({name}={value!r}) cannot be honoured by this version. Leave it out.")
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name in handled or field.name in _RECORDS or value == getattr(plain, field.name):
            continue
        raise ConfigError(
            f"LoraConfig({field.name}={value!r}) cannot be honoured: Sapwood's LoRA has no such option. Leave it out, or wrap the model "
            "yourself: model = peft.get_peft_model(model, config), and leave peft_config out."
        )
    return LoraConfig(**ours)


_RECORDS = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "runtime_config", "fan_in_fan_out"}
"""What peft writes down about a model, and nobody asks for."""


def _entries(pattern: Mapping[str, Any] | None) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in (pattern or {}).items())


def _numbers(layers: Any) -> tuple[int, ...]:
    return (layers,) if isinstance(layers, int) else tuple(layers or ())


def _names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(sorted(names or ()))


def _start(init: Any) -> str:
    if init is True:
        return "default"
    if init in (False, "eva", "corda", "loftq", "lora_ga"):
        raise ConfigError(
            f"LoraConfig(init_lora_weights={init!r}) cannot be honoured: wrap the model with peft yourself, and give it here."
        )
    return str(init)


_SAME: Mapping[str, tuple[str, Any]] = {
    "lora_dropout": ("dropout", float),
    "bias": ("bias", str),
    "use_dora": ("dora", bool),
    "modules_to_save": ("modules_to_save", _names),
    "exclude_modules": ("exclude", _names),
    "layers_to_transform": ("layers", _numbers),
    "rank_pattern": ("rank_pattern", _entries),
    "alpha_pattern": ("alpha_pattern", _entries),
    "init_lora_weights": ("init", _start),
}
"""peft's name → our knob, and how its value is written there."""


def _targets(given: Any, model_type: str, notes: list[str]) -> tuple[str, ...]:
    """Which layers: a word, names, or a pattern; peft's own choice for the family where nothing is said."""
    if given is None:
        if model_type not in PEFT_TARGETS:
            raise ConfigError(f"LoraConfig has no target_modules, and peft has no choice of its own for {model_type}. Give 'all-linear'.")
        found = tuple(PEFT_TARGETS[model_type])
        notes.append(
            f"LoraConfig has no target_modules, so adapters stand where peft puts them for {model_type}: {', '.join(found)}. "
            "'all-linear' usually learns more."
        )
        return found
    if isinstance(given, str) and "," in given:
        notes.append(f"target_modules={given!r} is read as a list of names; peft would take it for one pattern, which matches nothing.")
        return tuple(part.strip() for part in given.split(",") if part.strip())
    return _names(given)


def named(kind: type, **knobs: Any) -> Any:
    """A config of ours, with errors that speak of TRL's names."""
    try:
        return kind(**knobs)
    except ConfigError as error:
        text = str(error)
        for ours, theirs in _THEIRS.items():
            text = text.replace(ours, theirs)
        raise ConfigError(text) from None


_THEIRS = {
    "optim.lr ": "learning_rate ",
    "optim.beta1": "adam_beta1",
    "optim.beta2": "adam_beta2",
    "optim.eps": "adam_epsilon",
    "optim.weight_decay": "weight_decay",
    "optim.max_grad_norm": "max_grad_norm",
    "optim.warmup": "warmup_steps",
    "keep ": "save_total_limit ",
}
