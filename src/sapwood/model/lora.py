"""A fresh adapter on a model: LoRA and what peft's `LoraConfig` offers around it.

Hu et al., arXiv:2106.09685: h = W x + (alpha / r) B A x, with B = 0 at the start.

In: a `LanguageModel` and a `LoraConfig`. Out: the model in peft's own layers, so that a saved adapter loads in plain peft.
Left out on purpose: starts that need a pass over data first (EVA, CorDA, LoRA-GA) or a quantized base (LoftQ), layers that are
repeated, and experts by name: peft's own tools make those adapters.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import peft
import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from sapwood.errors import ConfigError, ModelError
from sapwood.model.adapters import wrapped_in
from sapwood.model.language_model import LanguageModel
from sapwood.model.new_tokens import check_wrapped, token_indices
from sapwood.model.quantized import before_peft

Start = Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_4", "pissa_niter_16", "mica"]
REWRITING: tuple[Start, ...] = ("olora", "pissa", "pissa_niter_4", "pissa_niter_16")
"""Starts that take a part out of the base weights and let the adapter begin as that part."""

ADAPTABLE = (nn.Linear, nn.Embedding, Conv1D)
"""Kinds of layers that get adapters."""

_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter."""

    r: int = 16
    """Rank of the update. More can express more and costs more memory; 8 to 32 suits most tasks."""
    alpha: float = 32.0
    """Scale of the update: it is multiplied by alpha / r."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers that get an adapter: names such as `q_proj`, patterns of whole names such as `.*layers\\.[0-3]\\..*_proj`, or `all-linear`."""
    exclude: tuple[str, ...] = ()
    """Layers that get none, though `targets` matches them: names or patterns."""
    layers: tuple[int, ...] = ()
    """Numbers of the decoder layers that get adapters, from 0; all of them where none is given."""
    rank_pattern: tuple[str, ...] = ()
    """Other ranks for some layers, such as `q_proj=8` or `layers\\.0\\..*=64`."""
    alpha_pattern: tuple[str, ...] = ()
    """Other scales for some layers, such as `q_proj=16`."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv:2312.03732), which keeps large ranks stable."""
    dora: bool = False
    """Train length and direction of the weights apart (DoRA, arXiv:2402.09353): better at small ranks, slower."""
    init: Start = "default"
    """How A and B start. `pissa` and `olora`: as the weights' strongest part (arXiv:2404.02948, 2406.01775); `mica` trains A alone."""
    dropout: float = 0.0
    """Share of an adapter's inputs that a step leaves out. Above 0, training shares no prefixes: each row has its own draw."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Train biases as well: none, those of adapted layers, or all."""
    modules_to_save: tuple[str, ...] = ()
    """Layers that are trained whole beside the adapter and saved with it, such as `lm_head` or `embed_tokens`."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"lora.r is {self.r}; give a rank of at least 1, or train all weights with `full: true`.")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha is {self.alpha}; give a number above 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}; it is a share, from 0 to below 1.")
        if self.dora and self.init == "mica":
            raise ConfigError("lora.dora and lora.init mica do not go together; choose one of them.")
        ranks, _ = self.ranks(), self.scales()
        if self.init == "orthogonal" and any(rank % 2 for rank in (self.r, *ranks.values())):
            raise ConfigError("lora.init orthogonal needs even ranks; give even ones in lora.r and lora.rank_pattern.")

    def ranks(self) -> dict[str, int]:
        """`rank_pattern` as peft takes it."""
        return _pattern("rank_pattern", self.rank_pattern, int)

    def scales(self) -> dict[str, float]:
        """`alpha_pattern` as peft takes it."""
        return _pattern("alpha_pattern", self.alpha_pattern, float)


def _pattern(knob: str, entries: Sequence[str], kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        name, _, value = entry.rpartition("=")
        try:
            found[name] = kind(value)
            re.compile(name)
        except (ValueError, re.error):
            found[name] = 0
        if not name or not 0 < found[name] < math.inf:
            raise ConfigError(f"lora.{knob} holds {entry!r}; give a layer's name or pattern and a number above 0, such as q_proj=8.")
    return found


def add_lora(model: LanguageModel, config: LoraConfig, seed: int) -> LanguageModel:
    """Wrap the model in a fresh adapter, in fp32 whatever the base is in. What is drawn depends on `seed` alone.

    Raises `ConfigError` where an entry of `targets` or of a pattern matches no layer of the model, or the model cannot take
    what is asked, and `ModelError` for a model that carries an adapter.
    """
    if any(isinstance(layer, BaseTunerLayer) for layer in model.module.modules()):
        raise ModelError(
            "This model carries an adapter already, and a second one would mix with it. Load the model again, or merge the first."
        )
    before_peft()
    _refuse_unknown(model, config)
    tokens = token_indices(model) if model.new_tokens else None
    with torch.random.fork_rng(devices=generators_of(model.device)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            module = peft.get_peft_model(model.module, _as_peft(model, config, tokens))
        except ValueError as error:
            raise ConfigError(f"lora.targets is {config.targets!r}: {error} {_linear_layers(model)}") from error
    _refuse_unmatched(module, config)
    wrapped = wrapped_in(model, module)
    if config.init in REWRITING:
        wrapped.taken_out = _starts(module)
    if tokens is not None:
        check_wrapped(wrapped)
    return wrapped


def _as_peft(model: LanguageModel, config: LoraConfig, tokens: Any) -> Any:
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        target_modules=_targets(model, config),
        exclude_modules=_excluded(model, config),
        layers_to_transform=list(config.layers) or None,
        rank_pattern=config.ranks(),
        alpha_pattern=config.scales(),
        use_rslora=config.rslora,
        use_dora=config.dora,
        init_lora_weights=True if config.init == "default" else config.init,
        lora_dropout=config.dropout,
        bias=config.bias,
        modules_to_save=_whole(model, config) or None,
        ensure_weight_tying=_is_tied(model) and any(_ends(model, entry) for entry in config.modules_to_save),
        task_type="CAUSAL_LM",
        trainable_token_indices=tokens,
    )


def _starts(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of A and B by name: what such a start has taken out of the base weights."""
    return {name: value.detach().clone() for name, value in module.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def generators_of(device: torch.device) -> list[torch.device]:
    """The devices, beside the CPU, whose state of random numbers a seed would change."""
    return [device] if device.type == "cuda" else []


@contextmanager
def drawing(model: LanguageModel, seed: int, step: int) -> Iterator[None]:
    """Inside, an adapter's dropout draws, as a function of (seed, step); outside, and in models without it, nothing does.

    The model's own dropout stays off: it was trained with, not for.
    """
    if not model.draws:
        yield
        return
    drops = [layer for module in model.module.modules() if isinstance(module, LoraLayer) for layer in module.lora_dropout.values()]
    with torch.random.fork_rng(devices=generators_of(model.device)):
        torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]))
        try:
            for layer in drops:
                layer.train()
            yield
        finally:
            for layer in drops:
                layer.eval()


def _is_pattern(target: str) -> bool:
    """Whether an entry of `targets` is a pattern; anything that cannot be a layer's name is."""
    return _NAME.fullmatch(target) is None


def _matches(target: str, name: str) -> bool:
    if _is_pattern(target):
        return re.fullmatch(target, name) is not None
    return name == target or name.endswith(f".{target}")


def _targets(model: LanguageModel, config: LoraConfig) -> Any:
    """What peft takes: the word `all-linear`, a list of names, or one pattern."""
    if config.targets == ("all-linear",):
        return _names_of_linear_layers(model) if config.layers else "all-linear"
    if not any(_is_pattern(target) for target in config.targets):
        return list(config.targets)
    return "|".join(f"(?:{target})" if _is_pattern(target) else rf"(?:.*\.)?{re.escape(target)}" for target in config.targets)


def _whole(model: LanguageModel, config: LoraConfig) -> list[str]:
    """Full names of the layers to train whole: peft takes any name that ends alike, and `norm` would mean every norm."""
    names = [name for name, _ in model.base.named_modules()]
    return [name for name in names if any(_matches(entry, name) for entry in config.modules_to_save)]


def _excluded(model: LanguageModel, config: LoraConfig) -> Any:
    parts = [f"(?:{entry})" if _is_pattern(entry) else rf"(?:.*\.)?{re.escape(entry)}" for entry in config.exclude]
    patterns = [target for target in config.targets if _is_pattern(target) and target != "all-linear"]
    for name, layer in model.base.named_modules():  # what a pattern means besides the layers that can have an adapter
        if not isinstance(layer, ADAPTABLE) and any(_matches(pattern, name) for pattern in patterns):
            parts.append(re.escape(name))
    outside = _outside_the_language_model(model)
    return "|".join([*parts, *([outside] if outside else [])]) or None


def _refuse_unknown(model: LanguageModel, config: LoraConfig) -> None:
    """peft is content if one name of several matches; a misspelt one among them would be accepted and ignored."""
    names = [name for name, _ in model.module.named_modules()]
    for knob, entries in (("targets", config.targets), ("exclude", config.exclude), ("modules_to_save", config.modules_to_save)):
        if knob == "targets" and entries == ("all-linear",):
            continue
        for entry in entries:
            try:
                re.compile(entry)
            except re.error as error:
                raise ConfigError(f"lora.{knob} holds {entry!r}, which is no regular expression: {error}.") from None
        unknown = [entry for entry in entries if not any(_matches(entry, name) for name in names)]
        if unknown or (knob == "targets" and not entries):
            found = f"no layer is called {', '.join(map(repr, unknown))}" if entries else "it is empty"
            also = " Or give `all-linear` alone." if knob == "targets" else ""
            raise ConfigError(f"lora.{knob} is {entries!r}: {found}. {_linear_layers(model)}{also}")
    if config.layers:
        _refuse_layers(model, config)
    both = [name for target in config.targets if target != "all-linear" for name in _ends(model, target)]
    if both and _is_tied(model):
        raise ConfigError(
            f"lora.targets is {config.targets!r}: {both[0]} is the embedding and the head at once here, and an adapter on one side alone "
            "cannot be merged. Train it whole with lora.modules_to_save, or leave it out."
        )
    if config.init in REWRITING and model.dtype is not torch.float32:
        raise ConfigError(
            f"lora.init {config.init} rewrites the base weights, and in {str(model.dtype).removeprefix('torch.')} what rounding takes from "
            "them would be missing from the saved adapter. Give --dtype fp32, or another --init."
        )
    if model.new_tokens and any(entry.endswith(("embed_tokens", "lm_head")) for entry in config.modules_to_save):
        raise ConfigError(
            "lora.modules_to_save trains an embedding whole, and the template's new tokens train rows of it. "
            "Leave the embedding out of lora.modules_to_save: the rows of the new tokens are trained without it."
        )


def _refuse_layers(model: LanguageModel, config: LoraConfig) -> None:
    count = int(model.base.config.get_text_config().num_hidden_layers)
    outside = [number for number in config.layers if not 0 <= number < count]
    if outside:
        raise ConfigError(f"lora.layers holds {outside[0]}, but the model's {count} layers are numbered 0 to {count - 1}.")
    if any(_is_pattern(target) for target in config.targets if target != "all-linear"):
        raise ConfigError("lora.layers takes targets by name. Write the numbers into the pattern instead, such as `.*layers\\.[0-3]\\..*`.")


def _refuse_unmatched(module: Any, config: LoraConfig) -> None:
    """A pattern for no adapted layer would be accepted and ignored."""
    adapted = [name for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]
    for knob, pattern in (("rank_pattern", config.ranks()), ("alpha_pattern", config.scales())):
        for key in pattern:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in adapted):
                short = sorted({name.rsplit(".", 1)[-1] for name in adapted})
                raise ConfigError(f"lora.{knob} holds {key!r}, but no layer with an adapter is called so. They are: {', '.join(short)}.")


def _is_tied(model: LanguageModel) -> bool:
    tied: bool = model.base.get_input_embeddings().weight is model.base.get_output_embeddings().weight
    return tied


def _ends(model: LanguageModel, entry: str) -> list[str]:
    """Names of the embedding and the head, where an entry means them."""
    ends = (model.base.get_input_embeddings(), model.base.get_output_embeddings())
    return [name for name, layer in model.base.named_modules() if layer in ends and _matches(entry, name)]


def _outside_the_language_model(model: LanguageModel) -> str | None:
    """A pattern for the towers of images and sounds, which stay as they are; None where the model reads text alone."""
    decoder = model.base.get_decoder()
    name = next((name for name, module in model.base.named_modules() if module is decoder), "")
    own = {id(parameter) for part in (decoder, model.base.get_output_embeddings()) for parameter in part.parameters()}
    if not name or all(id(parameter) in own for parameter in model.base.parameters()):
        return None
    return rf"(?!{re.escape(name)}\.).*"


def _names_of_linear_layers(model: LanguageModel) -> list[str]:
    """Last parts of the names of the decoder's linear layers."""
    return sorted({name.rsplit(".", 1)[-1] for name, layer in model.base.get_decoder().named_modules() if isinstance(layer, nn.Linear)})


def _linear_layers(model: LanguageModel) -> str:
    names = sorted({name.rsplit(".", 1)[-1] for name, layer in model.module.named_modules() if isinstance(layer, nn.Linear)})
    return f"Linear layers here: {', '.join(names)}."
