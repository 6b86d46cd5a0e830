"""What the options of all trainers share: TRL's names, of this and of former versions, taken and each answered.

In: keywords as people write them. Out: an object whose fields are the options that are honoured, with TRL's defaults, and
`notes`: one line for each option that has another name now, or that Sapwood meets in a way of its own. An option that would
change what is learned, and that Sapwood does not have, raises `ConfigError`; so does a name that nobody knows. Each trainer's class
brings fields and tables of its own. Left out on purpose: what the options do. `settings` turns them into the knobs of the loops.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.trl.names import MET, REFUSED, RENAMED, is_neutral


@dataclass(init=False, eq=False)
class Options:
    """Options of any trainer."""

    renamed: ClassVar[Mapping[str, tuple[str, str]]] = RENAMED
    met: ClassVar[Mapping[str, str]] = MET
    refused: ClassVar[Mapping[str, str]] = REFUSED
    others: ClassVar[Mapping[str, Any]] = {}
    """Defaults of TRL's own options that are no fields here."""

    output_dir: str | None = None
    """Folder of the result: each `train()` has a run folder below it, and `save_model()` writes here. Default: MODEL-SFT."""
    num_train_epochs: float = 3.0
    """Times every row is trained."""
    max_steps: int = -1
    """Steps to train, whatever num_train_epochs would give; -1 leaves it to the epochs."""
    per_device_train_batch_size: int = 8
    """Rows a step, times gradient_accumulation_steps: the two are one number here."""
    gradient_accumulation_steps: int = 1
    """Rows a step are this times per_device_train_batch_size."""
    learning_rate: float = 2e-5
    """Peak learning rate."""
    lr_scheduler_type: str = "linear"
    """How the rate falls after the warm-up: linear, cosine, constant, …"""
    lr_scheduler_kwargs: Mapping[str, Any] | None = None
    """Of cosine_with_min_lr (`min_lr_rate`) and warmup_stable_decay (`num_decay_steps`, `min_lr_ratio`)."""
    warmup_steps: float = 0
    """Steps over which the rate rises; a number below 1 is a share of all steps."""
    optim: str = "adamw_torch_fused"
    """The optimizer's name."""
    weight_decay: float = 0.0
    """Decoupled weight decay, of matrices."""
    adam_beta1: float = 0.9
    """Decay of the mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Added to the root of the squared gradients."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm; 0 leaves it as it is."""
    seed: int = 42
    """Seed of the order and of the adapter's start."""
    bf16: bool | None = None
    """True: base weights in bf16; False: in fp32. None: as the model was loaded; for a model by name, bf16 where the processor has it."""
    gradient_checkpointing: bool | None = None
    """Compute activations again in the backward pass, which takes less memory and more time."""
    activation_checkpointing: bool | None = None
    """The same."""
    max_refused: float = 0.02
    """Share of rows that may be refused before the run stops. Sapwood's own option."""
    chat_template_path: str | None = None
    """A Jinja file, a model's folder or id, or `chatml` or `plain`: the template to train with, where the model's own is not wanted."""
    model_init_kwargs: Mapping[str, Any] | None = None
    """Of a model by name: `dtype`."""
    eval_strategy: str = "no"
    """When held-out rows are evaluated: no, steps or epoch."""
    eval_steps: float | None = None
    """Steps between evaluations; logging_steps where not given, a share of all steps below 1."""
    eval_on_start: bool = False
    """Evaluate before the first step (as every eval_strategy but `no` does here) and at the end."""
    logging_strategy: str = "steps"
    """When a line of progress is written: no, steps or epoch."""
    logging_steps: float = 10
    """Steps between lines of progress, each the mean over them; a share of all steps below 1."""
    logging_first_step: bool = False
    """A line for the first step, too."""
    save_strategy: str = "steps"
    """When checkpoints are saved: no, steps, epoch, or best; the end of a run always is."""
    save_steps: float = 500
    """Steps between checkpoints; a share of all steps below 1."""
    save_total_limit: int | None = None
    """Checkpoints that are kept; all of them where not given."""
    report_to: Any = "none"
    """Services that hear of the run: `tensorboard` or `wandb`, where installed."""
    disable_tqdm: bool | None = None
    """True: no progress bar and no lines on the terminal."""
    log_level: str = "passive"
    """`error` or `critical`: no lines on the terminal."""
    use_cpu: bool = False
    """Compute on the processor even where there is a GPU."""
    push_to_hub: bool = False
    """Send the result to the hub at the end of `train()`."""
    hub_model_id: str | None = None
    """The name on the hub; output_dir's where not given."""
    hub_token: str | None = None
    """A token for the hub, where `hf auth login` has left none."""
    hub_private_repo: bool | None = None
    """False makes a new repository on the hub public; otherwise it is private, and its owner may open it."""
    resume_from_checkpoint: str | bool | None = None
    """As the argument of `train()`."""

    @property
    def name(self) -> str:
        """Of the class, for messages."""
        return type(self).__name__

    def __init__(self, output_dir: Any = None, **options: Any) -> None:
        for field in dataclasses.fields(type(self)):
            object.__setattr__(self, field.name, field.default)
        self.__dict__.update(_notes=[], _given={})
        self.take({**({"output_dir": output_dir} if output_dir is not None else {}), **options})

    @property
    def notes(self) -> list[str]:
        """One line for each option that has another name now, or is met in a way of Sapwood's own."""
        found: list[str] = self.__dict__["_notes"]
        return found

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by their names of today."""
        found: dict[str, Any] = self.__dict__["_given"]
        return found

    def take(self, options: Mapping[str, Any]) -> None:
        """Set options by any name. Raises `ConfigError` for one that is unknown, or cannot be honoured, or is given twice."""
        taken: dict[str, str] = {}
        for written, value in options.items():
            name, value = self._renamed(written, value)
            if name in taken and value is not None:
                raise ConfigError(f"{self.name}: `{written}` and `{taken[name]}` are the same option. Keep `{name}`.")
            if name in honoured(type(self)):
                taken[name] = written
                object.__setattr__(self, name, _plain(type(self), name, value))
                self.given[name] = getattr(self, name)
                self._comment(name)
            else:
                self._answer(name, value)

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """A copy with more options."""
        other = copy.copy(self)
        other.__dict__.update(_notes=list(self.notes), _given=dict(self.given))
        other.take(options)
        return other

    def __setattr__(self, name: str, value: Any) -> None:
        """`args.max_steps = 5` is how options are often changed: what is misspelt must not be a new attribute that nobody reads."""
        self.take({name: value})

    def _comment(self, name: str) -> None:
        """Notes on an option that is honoured in part. Raises `ConfigError` for the part that nobody knows."""

    def _answer(self, name: str, value: Any) -> None:
        """An option that is no field: met in another way, without effect at this value, or refused."""
        default = defaults(type(self)).get(name)
        if name in {*self.met, *self.refused, *defaults(type(self))} and (
            value is None or _same(value, default) or (is_neutral(value) and default is not True)
        ):
            return
        if self._special(name, value):
            return
        if name in self.met:
            self.notes.append(f"{name}={_short(value)}: {self.met[name]}.")
        elif name in self.refused:
            raise ConfigError(f"{self.name}({name}={_short(value)}) cannot be honoured: {self.refused[name]}.")
        elif name in defaults(type(self)):
            raise ConfigError(
                f"{self.name}({name}={_short(value)}) cannot be honoured: Sapwood has no such option. Leave it out"
                f"{'' if default is None else f', or at {_short(default)}'}. docs/from-trl.md lists every option and what becomes of it."
            )
        else:
            known = [*honoured(type(self)), *self.met, *self.refused, *self.renamed]
            raise ConfigError(
                f"{self.name}: unknown option `{name}`.{did_you_mean(name, known)} Neither this version of TRL nor a former one that "
                "Sapwood knows has it; docs/from-trl.md lists them all."
            )

    def _special(self, name: str, value: Any) -> bool:
        """Whether an option that is no field was answered by a sentence of its own."""
        if name == "train_sampling_strategy" and value in ("random", "group_by_length"):
            why = self.met["group_by_length"] if value != "random" else self.met["shuffle_dataset"]
            self.notes.append(f"train_sampling_strategy={value!r}: {why}.")
            return True
        return name == "data_seed" and bool(value == self.seed)

    def _renamed(self, written: str, value: Any) -> tuple[str, Any]:
        if written not in self.renamed:
            return written, value
        name, since = self.renamed[written]
        if value is not None:
            self.notes.append(f"{written} is called {name} since {since}." if since else f"{written} is called {name}.")
        return name, value


Kind = TypeVar("Kind", bound=Options)


def understood(args: Any, kind: type[Kind]) -> Kind:
    """Options of ours, of TRL's, or transformers' `TrainingArguments`: of the last two what differs from their defaults.

    Raises `ConfigError` for anything else, options of another trainer among it.
    """
    if isinstance(args, kind):
        return args
    if args is None:
        return kind()
    ours, trainer = kind.__name__, kind.__name__.replace("Config", "Trainer")
    foreign = isinstance(args, Options) or not dataclasses.is_dataclass(args) or isinstance(args, type)
    if foreign or not hasattr(args, "per_device_train_batch_size"):
        raise ConfigError(
            f"{trainer}: args is a {type(args).__name__}. Give {'an' if ours[0] == 'S' else 'a'} {ours}: "
            f"`{trainer}(model, args={ours}(output_dir=…), …)`."
        )
    return kind(**dict(_changed(args, kind)))


def _changed(args: Any, kind: type[Options]) -> Iterator[tuple[str, Any]]:
    """Options that differ from the defaults of their class, but for those that the class sets by itself (TRL's bf16 among them)."""
    by_itself = {"report_to", "disable_tqdm", "logging_dir", "run_name", "local_rank", "fsdp_config", "accelerator_config"}
    if getattr(type(args), "gradient_checkpointing", None) is True:  # TRL's default, which transformers moves to the name of today
        by_itself |= {"activation_checkpointing"}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name, None)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        quiet = field.name in by_itself or (field.name == "bf16" and default is None) or field.name not in known_options(kind)
        if not quiet and field.init and not field.name.startswith("_") and not _same(value, default) and not is_neutral(value):
            yield field.name, value


def _plain(kind: type[Options], name: str, value: Any) -> Any:
    """The value as a plain one: an enumeration's word, a number that was written as text. Raises `ConfigError` for another type."""
    value = getattr(value, "value", value)
    default = honoured(kind)[name]
    if name == "output_dir" and value is not None:
        return str(value)
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    if numeric and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 2e-5 as text
    if isinstance(default, int) and numeric and isinstance(value, float) and value == int(value) and name in _WHOLE:
        value = int(value)
    if numeric and value is None:
        return default
    if numeric and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ConfigError(f"{kind.__name__}({name}={_short(value)}): give a number, such as {default}.")
    if name in _WHOLE and not isinstance(value, int) and value is not None:
        raise ConfigError(
            f"{kind.__name__}({name}={_short(value)}): give a whole number, such as {default if default is not None else 1024}."
        )
    if (isinstance(default, bool) or name in _SWITCHES) and not isinstance(value, bool | None):
        raise ConfigError(f"{kind.__name__}({name}={_short(value)}): give True or False.")
    if name in ("max_length", "max_prompt_length") and value is not None and value < 1:
        raise ConfigError(f"{kind.__name__}({name}={value}): give a number of tokens, or None, which is no limit but the model's own.")
    if name in _WORDS and value not in _WORDS[name]:
        words = list(_WORDS[name])
        if value in (False, None):  # what `no` is in YAML
            return "no"
        raise ConfigError(f"{kind.__name__}({name}={_short(value)}): allowed are {', '.join(words)}.{did_you_mean(str(value), words)}")
    if name == "metric_for_best_model" and value not in (None, "loss", "eval_loss"):
        raise ConfigError(f"{kind.__name__}({name}={_short(value)}) cannot be honoured: {kind.refused[name]}.")
    return value


_WHOLE = {
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "save_total_limit",
    "max_length",
    "num_generations",
    "max_completion_length",
    "max_prompt_length",
    "num_iterations",
    "resample",
    "preflight",
}
_SWITCHES = {
    "bf16",
    "gradient_checkpointing",
    "activation_checkpointing",
    "completion_only_loss",
    "assistant_only_loss",
    "disable_tqdm",
    "hub_private_repo",
}
_WORDS = {
    "eval_strategy": ("no", "steps", "epoch"),
    "logging_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch", "best"),
}


def honoured(kind: type[Options]) -> dict[str, Any]:
    """The honoured options and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


def defaults(kind: type[Options]) -> dict[str, Any]:
    """Every option of transformers' training arguments and of TRL's class, with its default."""
    return {**_of_transformers(), **kind.others}


@cache
def _of_transformers() -> dict[str, Any]:
    from transformers import TrainingArguments  # some 100 ms, and only wanted for names that are not fields here

    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(TrainingArguments)
        if not field.name.startswith("_")
    }


def _same(value: Any, default: Any) -> bool:
    value, default = getattr(value, "value", value), getattr(default, "value", default)
    return type(value) is type(default) and bool(value == default)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def known_options(kind: type[Options]) -> set[str]:
    """Every name that an option has or had."""
    return {*honoured(kind), *kind.met, *kind.refused, *kind.renamed, *defaults(kind)} - {"tokenizer"}
