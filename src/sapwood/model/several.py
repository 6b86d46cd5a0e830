"""Several adapters on one base: load them under names, switch between them, stack them by weights, take them off.

In: a `LanguageModel`, and folders of adapters trained on the same base. Out: the same model with other adapters in force, in peft's own
layers. A stack is the exact weighted sum of the updates (peft's `cat`: ranks add up), not a mean of factors, which is none.
Left out on purpose: stacks of adapters that trained whole layers, biases, DoRA's lengths or rows of new tokens: their sum is not
defined, and they are refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from peft.tuners.lora import LoraLayer

from sapwood.errors import CheckpointError, ConfigError
from sapwood.model.adapters import load_adapter, wrapped_in
from sapwood.model.language_model import LanguageModel


def adapter_names(model: LanguageModel) -> list[str]:
    """Names of the adapters that are loaded, in order."""
    return list(getattr(model.module, "peft_config", {}))


def add_adapter(model: LanguageModel, folder: Path | str, name: str) -> LanguageModel:
    """Load one more adapter under a name, and put it in force. Its updates do not train.

    Raises `ConfigError` for a name that is taken, `CheckpointError` for an adapter of another base or one that brings new tokens to a
    base that carries adapters.
    """
    folder = Path(folder)
    if name in adapter_names(model):
        raise ConfigError(f"There is an adapter called {name!r} already. Choose another name, or unload that one.")
    if not name.isidentifier():
        raise ConfigError(f"An adapter's name is {name!r}; give letters, digits and underscores, not beginning with a digit.")
    if not adapter_names(model):
        return load_adapter(model, folder, name=name)
    try:
        described = peft.PeftConfig.from_pretrained(str(folder))
        if getattr(described, "trainable_token_indices", None):
            raise CheckpointError(
                f"{folder}: this adapter brings rows of new tokens, so it can only be loaded first, on a base without adapters."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensors that are missing are an error below
            result: Any = model.module.load_adapter(str(folder), adapter_name=name, is_trainable=False)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        if name in adapter_names(model):
            model.module.delete_adapter(name)
        raise CheckpointError(f"{folder}: this adapter does not fit the model: {' '.join(str(error).split())[:300]}") from error
    lacking = [key for key in result.missing_keys if f".{name}." in key]
    if lacking or result.unexpected_keys:
        model.module.delete_adapter(name)
        raise CheckpointError(f"{folder}: this adapter belongs to another model: {[*lacking, *result.unexpected_keys][0]} has no match.")
    return use_adapter(wrapped_in(model, model.module), name)


def use_adapter(model: LanguageModel, name: str) -> LanguageModel:
    """Put one adapter in force, the others out of it. Raises `ConfigError` for a name that is not loaded."""
    _require(model, [name])
    model.module.set_adapter(name, inference_mode=True)
    return model


def stack_adapters(model: LanguageModel, weights: Mapping[str, float], name: str) -> LanguageModel:
    """Make one adapter that updates by the weighted sum of others' updates, and put it in force; the others stay loaded.

    Raises `ConfigError` for names that are not loaded, are taken, or belong to adapters whose sum is not defined.
    """
    if not weights:
        raise ConfigError("No adapter is named to stack. Give names with weights, such as {'a': 0.5, 'b': 0.5}.")
    if name in adapter_names(model):
        raise ConfigError(f"There is an adapter called {name!r} already. Choose another name for the stack.")
    _require(model, weights)
    for one in weights:
        odd = oddities(model, one)
        if odd:
            raise ConfigError(f"The adapter {one!r} has {' and '.join(odd)}, of which no sum is defined. Merge it into its base first.")
    model.module.add_weighted_adapter(list(weights), [float(value) for value in weights.values()], name, combination_type="cat")
    _as_a_plain_sum(model.module, name)
    return use_adapter(wrapped_in(model, model.module), name)


def oddities(model: LanguageModel, name: str) -> list[str]:
    """What an adapter has that is more than a sum to the outputs of layers."""
    config: Any = model.module.peft_config[name]
    found = [
        word
        for word, has in (
            ("DoRA", getattr(config, "use_dora", False)),
            ("trained biases", getattr(config, "bias", "none") != "none"),
            ("whole layers", getattr(config, "modules_to_save", None)),
            ("rows of new tokens", getattr(config, "trainable_token_indices", None)),
        )
        if has
    ]
    return found or ([] if isinstance(config, peft.LoraConfig) else ["no LoRA"])


def _as_a_plain_sum(module: Any, name: str) -> None:
    """peft puts each scale into the factors, and then scales once more by the first adapter's own rule (rsLoRA's, or a pattern's)."""
    config = module.peft_config[name]
    config.use_rslora, config.lora_alpha, config.rank_pattern, config.alpha_pattern = False, config.r, {}, {}
    for layer in module.modules():
        if isinstance(layer, LoraLayer) and name in layer.scaling:
            layer.scaling[name] = 1.0


def unload_adapter(model: LanguageModel, name: str) -> LanguageModel:
    """Take one adapter off. The last one leaves the bare base model; else the first that is left is put in force.

    Raises `ConfigError` for a name that is not loaded.
    """
    _require(model, [name])
    left = [one for one in adapter_names(model) if one != name]
    if not left:
        bare = LanguageModel(model.module.unload(), probe=False)
        bare.shares_prefixes, bare.notes, bare._own_head = model.shares_prefixes, model.notes, model._own_head
        return bare
    if model.module.active_adapter == name:
        use_adapter(model, left[0])
    model.module.delete_adapter(name)
    return model


def _require(model: LanguageModel, names: Any) -> None:
    loaded = adapter_names(model)
    unknown = [name for name in names if name not in loaded]
    if unknown:
        raise ConfigError(f"There is no adapter called {unknown[0]!r}. Loaded: {', '.join(loaded) or 'none'}.")
