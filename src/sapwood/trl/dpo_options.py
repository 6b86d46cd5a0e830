"""`DPOConfig` and `KTOConfig`: TRL's options of preference tuning → the knobs of Sapwood's own loop.

In: keywords as people write them, of this and of former versions; the number of pairs or votes. Out: `train.DpoConfig`, and how often
progress is told. Left out on purpose: other divergences and losses than those that `train.preferences` names a paper for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sapwood.errors import ConfigError
from sapwood.model import LoraConfig
from sapwood.train import DpoConfig
from sapwood.train.order import num_steps
from sapwood.trl.names import MET, REFUSED, REFUSED_BEYOND_SFT
from sapwood.trl.options import Options
from sapwood.trl.settings import NEVER, Settings, intervals, named, optimizer, services

_NOT_CUT = "nothing is ever cut: a row that is longer than max_length is refused by name"
_ASKED_ONCE = "the reference is the model as it was before step 1; it is asked once, and its answers are kept in the run's folder"
_ONE_REFERENCE = "the reference is the model as it was before step 1. Leave it out"
_LOSSES = ("sigmoid", "robust", "ipo")


@dataclass(init=False, eq=False)
class _Preferring(Options):
    """What both kinds have."""

    met: ClassVar[Mapping[str, str]] = {
        **MET,
        "max_prompt_length": _NOT_CUT,
        "max_completion_length": _NOT_CUT,
        "max_target_length": _NOT_CUT,
        "disable_dropout": "the model's own dropout is off while it trains",
        "precompute_ref_log_probs": _ASKED_ONCE,
        "precompute_ref_batch_size": _ASKED_ONCE,
        "generate_during_eval": "no answers are sampled; use `sapwood eval` on the run's adapter to see some",
        "padding_value": "rows are never padded here",
        "label_pad_token_id": "rows are never padded here",
        "ref_model_init_kwargs": _ASKED_ONCE,
    }
    refused: ClassVar[Mapping[str, str]] = {
        **REFUSED,
        **REFUSED_BEYOND_SFT,
        "label_names": "what is trained are the answers of the rows. Leave it out",
        "sync_ref_model": _ONE_REFERENCE,
        "reference_free": _ONE_REFERENCE,
        "force_use_ref_model": _ONE_REFERENCE,
        "model_adapter_name": "one adapter is trained. Leave it out",
        "ref_adapter_name": _ONE_REFERENCE,
        "is_encoder_decoder": "models that write token by token are trained. Leave it out",
    }
    others: ClassVar[Mapping[str, Any]] = {
        "save_safetensors": True,
        "disable_dropout": True,
        "pad_to_multiple_of": "auto",
        "truncation_mode": "keep_start",
        "ref_model_mixup_alpha": 0.6,
        "ref_model_sync_steps": 512,
    }

    learning_rate: float = 1e-6
    """Peak learning rate; an adapter wants ten times the default."""
    beta: float = 0.1
    """How dear it is to leave the reference."""
    max_length: int | None = None
    """Most tokens of a prompt with its answer; a longer one is refused by name, never cut. None: what the model can attend to."""


@dataclass(init=False, eq=False)
class DPOConfig(_Preferring):
    """Options of `DPOTrainer`. Any that TRL 1.16 or transformers 5 knows may be given, and those that the course still uses."""

    refused: ClassVar[Mapping[str, str]] = {
        **_Preferring.refused,
        "loss_type": "the losses are sigmoid, robust and ipo, one a run; votes (kto_pair) have KTOTrainer. Choose one of these",
        "loss_weights": "one loss is trained. Leave it out",
        "ld_alpha": "every token of an answer counts alike. Leave it out",
        "f_divergence_type": "the divergence is the reverse KL. Leave it at 'reverse_kl'",
        "use_weighting": "every pair counts alike. Leave it out",
        "rpo_alpha": "no likelihood of the chosen answer is added. Leave it out",
    }
    others: ClassVar[Mapping[str, Any]] = {
        **_Preferring.others,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "discopop_tau": 0.05,
    }

    loss_type: Any = "sigmoid"
    """`sigmoid` is DPO, `robust` bears wrong labels, `ipo` bounds the margin; a list of one is taken as well."""
    label_smoothing: float = 0.0
    """Share of labels that are believed to be wrong."""

    def _comment(self, name: str) -> None:
        if name == "loss_type":
            found = self.loss_type
            found = found[0] if isinstance(found, list | tuple) and len(found) == 1 else found
            if found not in _LOSSES:
                raise ConfigError(f"DPOConfig(loss_type={self.loss_type!r}) cannot be honoured: {self.refused[name]}.")
            object.__setattr__(self, name, found)


@dataclass(init=False, eq=False)
class KTOConfig(_Preferring):
    """Options of `KTOTrainer`."""

    others: ClassVar[Mapping[str, Any]] = {**_Preferring.others, "loss_type": "kto", "train_sampling_strategy": "sequential"}
    refused: ClassVar[Mapping[str, str]] = {**_Preferring.refused, "loss_type": "single votes are trained by KTO's loss. Leave it at 'kto'"}

    desirable_weight: float = 1.0
    """Weight of good answers."""
    undesirable_weight: float = 1.0
    """Weight of bad answers."""


def preference_settings(
    args: DPOConfig | KTOConfig, rows: int, *, full: bool, lora: LoraConfig | None, notes: list[str]
) -> Settings[DpoConfig]:
    """The run that `args` describe, on so many pairs or votes. Raises `ConfigError` by TRL's names."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if batch < 1:
        raise ConfigError("per_device_train_batch_size and gradient_accumulation_steps must be at least 1 each.")
    if batch > rows:
        notes.append(f"A step would take {batch} rows and there are {rows}; it takes each of them once.")
        batch = rows
    if not 0 < args.num_train_epochs < math.inf:
        raise ConfigError(f"num_train_epochs is {args.num_train_epochs}; give a number above 0.")
    steps = args.max_steps if args.max_steps > 0 else num_steps(rows, batch, args.num_train_epochs)
    every = intervals(args, steps, max(1, round(rows / batch)))
    kind = (
        {"good_weight": float(args.desirable_weight), "bad_weight": float(args.undesirable_weight)}
        if isinstance(args, KTOConfig)
        else {"loss": args.loss_type, "smoothing": float(args.label_smoothing)}
    )
    train = named(
        DpoConfig,
        **kind,
        beta=float(args.beta),
        epochs=float(args.num_train_epochs),
        max_steps=steps if args.max_steps > 0 else None,
        batch=batch,
        seed=args.seed,
        eval_every=every["eval"],
        save_every=every["save"],
        keep=args.save_total_limit or NEVER,
        checkpointing=bool(args.gradient_checkpointing or args.activation_checkpointing),
        full=full,
        lora=lora or LoraConfig(),
        optim=optimizer(args, steps, notes),
    )
    return Settings(train, steps, every["logging"], args.eval_strategy != "no" or args.eval_on_start, services(args, notes))
