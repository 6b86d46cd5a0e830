"""`SFTConfig`: TRL's options, of this and of former versions, taken by name and each answered.

In: keywords as people write them. Out: an object whose fields are the options that are honoured, with TRL's defaults, and
`notes`: one line for each option that has another name now, or that Sapwood meets in a way of its own. An option that would
change what is learned, and that Sapwood does not have, raises `ConfigError`; so does a name that nobody knows.
Left out on purpose: what the options do. `settings` turns them into the knobs of the loop.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.trl.names import MET, REFUSED, RENAMED, is_neutral


@dataclass(init=False, eq=False)
class SFTConfig:
    """Options of `SFTTrainer`. Any that TRL 1.16 or transformers 5 knows may be given, and those that the course still uses."""

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
    max_length: int | None = None
    """Most tokens of a row; a longer one is refused by name, never cut. None: what the model can attend to."""
    max_refused: float = 0.02
    """Share of rows that may be refused before the run stops. Sapwood's own option."""
    dataset_text_field: str = "text"
    """Column of texts, where rows hold no conversation."""
    dataset_kwargs: Mapping[str, Any] | None = None
    """`skip_prepare_dataset`, for rows that hold `input_ids`; others are answered with a note."""
    completion_only_loss: bool | None = None
    """False trains the prompts of rows of `prompt` and `completion`, too. None and True train completions alone."""
    assistant_only_loss: bool | None = None
    """False trains every turn of conversations. None and True train the assistant's turns alone."""
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
    load_best_model_at_end: bool = False
    """Give back the weights of the evaluation with the lowest held-out loss; the one before the first step counts, too."""
    metric_for_best_model: str | None = None
    """`loss` is what is compared."""
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

    def __init__(self, output_dir: Any = None, **options: Any) -> None:
        for field in dataclasses.fields(SFTConfig):
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
            name, value = _renamed(written, value, self.notes)
            if name in taken and value is not None:
                raise ConfigError(f"SFTConfig: `{written}` and `{taken[name]}` are the same option. Keep `{name}`.")
            if name in _fields():
                taken[name] = written
                object.__setattr__(self, name, _plain(name, value))
                self.given[name] = getattr(self, name)
                self._comment(name)
            else:
                self._answer(name, value)

    def with_options(self, options: Mapping[str, Any]) -> SFTConfig:
        """A copy with more options."""
        other = copy.copy(self)
        other.__dict__.update(_notes=list(self.notes), _given=dict(self.given))
        other.take(options)
        return other

    def __setattr__(self, name: str, value: Any) -> None:
        """`args.max_steps = 5` is how options are often changed: what is misspelt must not be a new attribute that nobody reads."""
        self.take({name: value})

    def _comment(self, name: str) -> None:
        """Notes on options that are honoured in part. Raises `ConfigError` for the part that nobody knows."""
        if name == "dataset_kwargs":
            for key, value in dict(self.dataset_kwargs or {}).items():
                if key in ("add_special_tokens", "append_concat_token"):
                    self.notes.append(
                        f"dataset_kwargs: {key}={value}: special tokens come from the template alone, and texts end in theirs."
                    )
                elif key != "skip_prepare_dataset":
                    known = ["skip_prepare_dataset", "add_special_tokens", "append_concat_token"]
                    raise ConfigError(f"SFTConfig(dataset_kwargs=…): unknown key {key!r}.{did_you_mean(key, known)} Leave it out.")
        elif name == "metric_for_best_model" and self.metric_for_best_model and not self.load_best_model_at_end:
            self.notes.append("metric_for_best_model: the held-out loss is what is compared.")

    def _answer(self, name: str, value: Any) -> None:
        """An option that is no field: met in another way, without effect at this value, or refused."""
        default = _defaults().get(name)
        if name in {*MET, *REFUSED, *_defaults()} and (
            value is None or _same(value, default) or (is_neutral(value) and default is not True)
        ):
            return
        if name == "train_sampling_strategy" and value in ("random", "group_by_length"):
            self.notes.append(
                f"train_sampling_strategy={value!r}: {MET['group_by_length'] if value != 'random' else MET['shuffle_dataset']}."
            )
        elif name == "loss_type" and value in ("nll", "chunked_nll"):
            self.notes.append(f"loss_type={value!r}: the head runs on the trained places only, and in chunks; the loss is the same.")
        elif name == "data_seed" and value == self.seed:
            return
        elif name in MET:
            self.notes.append(f"{name}={_short(value)}: {MET[name]}.")
        elif name in REFUSED:
            raise ConfigError(f"SFTConfig({name}={_short(value)}) cannot be honoured: {REFUSED[name]}.")
        elif name in _defaults():
            raise ConfigError(
                f"SFTConfig({name}={_short(value)}) cannot be honoured: Sapwood has no such option. Leave it out"
                f"{'' if default is None else f', or at {_short(default)}'}. docs/from-trl.md lists every option and what becomes of it."
            )
        else:
            known = [*_fields(), *MET, *REFUSED, *RENAMED]
            raise ConfigError(
                f"SFTConfig: unknown option `{name}`.{did_you_mean(name, known)} Neither this version of TRL nor a former one that Sapwood "
                "knows has it; docs/from-trl.md lists them all."
            )


def understood(args: Any) -> SFTConfig:
    """An `SFTConfig` of ours, of TRL's, or transformers' `TrainingArguments`: of the last two what differs from their defaults.

    Raises `ConfigError` for anything else.
    """
    if isinstance(args, SFTConfig):
        return args
    if args is None:
        return SFTConfig()
    if not dataclasses.is_dataclass(args) or isinstance(args, type) or not hasattr(args, "per_device_train_batch_size"):
        raise ConfigError(
            f"SFTTrainer: args is a {type(args).__name__}. Give an SFTConfig: `SFTTrainer(model, args=SFTConfig(output_dir=…), …)`."
        )
    return SFTConfig(**dict(_changed(args)))


def _changed(args: Any) -> Iterator[tuple[str, Any]]:
    """Options that differ from the defaults of their class, but for those that the class sets by itself (TRL's bf16 among them)."""
    by_itself = {"report_to", "disable_tqdm", "logging_dir", "run_name", "local_rank", "fsdp_config", "accelerator_config"}
    if getattr(type(args), "gradient_checkpointing", None) is True:  # TRL's default, which transformers moves to the name of today
        by_itself |= {"activation_checkpointing"}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name, None)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        quiet = field.name in by_itself or (field.name == "bf16" and default is None) or field.name not in {*_fields(), *known_options()}
        if not quiet and field.init and not field.name.startswith("_") and not _same(value, default) and not is_neutral(value):
            yield field.name, value


def _renamed(written: str, value: Any, notes: list[str]) -> tuple[str, Any]:
    if written not in RENAMED:
        return written, value
    name, since = RENAMED[written]
    if value is not None:
        notes.append(f"{written} is called {name} since {since}.")
    return name, value


def _plain(name: str, value: Any) -> Any:
    """The value as a plain one: an enumeration's word, a number that was written as text. Raises `ConfigError` for another type."""
    value = getattr(value, "value", value)
    default = _fields()[name]
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
        raise ConfigError(f"SFTConfig({name}={_short(value)}): give a number, such as {default}.")
    if name in _WHOLE and not isinstance(value, int) and value is not None:
        raise ConfigError(f"SFTConfig({name}={_short(value)}): give a whole number, such as {default if default is not None else 1024}.")
    if (isinstance(default, bool) or name in _SWITCHES) and not isinstance(value, bool | None):
        raise ConfigError(f"SFTConfig({name}={_short(value)}): give True or False.")
    if name == "max_length" and value is not None and value < 1:
        raise ConfigError(f"SFTConfig(max_length={value}): give a number of tokens, or None, which is no limit but the model's own.")
    if name in _WORDS and value not in _WORDS[name]:
        words = list(_WORDS[name])
        if value in (False, None):  # what `no` is in YAML
            return "no"
        raise ConfigError(f"SFTConfig({name}={_short(value)}): allowed are {', '.join(words)}.{did_you_mean(str(value), words)}")
    if name == "metric_for_best_model" and value not in (None, "loss", "eval_loss"):
        raise ConfigError(f"SFTConfig({name}={_short(value)}) cannot be honoured: {REFUSED[name]}.")
    return value


_WHOLE = {"max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "save_total_limit", "max_length"}
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


@cache
def _fields() -> dict[str, Any]:
    """The honoured options and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(SFTConfig)}


@cache
def _defaults() -> dict[str, Any]:
    """Every option of transformers' training arguments and of TRL's SFTConfig, with its default."""
    from transformers import TrainingArguments  # some 100 ms, and only wanted for names that are not fields here

    found = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(TrainingArguments)
        if not field.name.startswith("_")
    }
    own = {
        "packing_strategy": "bfd",
        "truncation_mode": "keep_start",
        "pad_to_multiple_of": "auto",
        "loss_type": "nll",
        "save_safetensors": True,
    }
    return {**found, **own}


def _same(value: Any, default: Any) -> bool:
    value, default = getattr(value, "value", value), getattr(default, "value", default)
    return type(value) is type(default) and bool(value == default)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def known_options() -> set[str]:
    """Every name that an option has or had."""
    return {*_fields(), *MET, *REFUSED, *RENAMED, *_defaults()} - {"tokenizer"}
