"""Several adapters in one forward: each row of the flat batch goes through its own, on one set of base weights.

In: a model with LoRA adapters loaded, and the adapter of each row. Out: within `with`, its LoRA layers compute the base's product for all
rows at once, and add to each row what its adapter adds, in the types and the order of peft's own forward.
Left out on purpose: adapters that are more than a sum to linear layers (DoRA, whole layers, biases, rows of new tokens), merged ones,
and layers that do not see the flat batch as it is (experts); they are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor

from sapwood.errors import ConfigError, ModelError
from sapwood.model import packed
from sapwood.model.language_model import LanguageModel
from sapwood.model.several import adapter_names, oddities

BASE = ""
"""The name of no adapter: the base model alone. None stands for the model as it is, whatever adapters are in force."""


class Routes:
    """The LoRA layers of one model."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._loaded: list[str] | None = None
        self._found: list[Any] = []

    @property
    def _layers(self) -> list[Any]:
        """Looked for anew when adapters were loaded or unloaded."""
        loaded = adapter_names(self._model)
        if loaded != self._loaded:
            self._found = [layer for layer in self._model.module.modules() if isinstance(layer, LoraLayer)]
            self._loaded = loaded
        return self._found

    def check(self, name: str | None) -> None:
        """Raises `ConfigError` for an adapter that is not loaded, or cannot run beside others in one batch."""
        if name is None:
            return
        loaded = adapter_names(self._model)
        if name != BASE and name not in loaded:
            raise ConfigError(f"There is no adapter called {name!r}. Loaded: {', '.join(loaded) or 'none'}.")
        for one in loaded:
            odd = oddities(self._model, one)
            if odd:
                raise ConfigError(
                    f"The adapter {one!r} has {' and '.join(odd)}, so it cannot run beside others in one batch. Put it in force alone, and "
                    "name no adapter."
                )
        if any(type(layer) is not Linear or layer.merged or layer.lora_variant for layer in self._layers):
            raise ConfigError("This model has adapters on quantized or special layers, or merged ones: put one in force, and name none.")

    @contextmanager
    def of(self, names: Sequence[str | None]) -> Iterator[None]:
        """Rows go through these adapters, in the order of the flat batch: `BASE` through none, None through those in force."""
        device = self._model.device
        places: dict[str | None, list[int]] = {}
        for row, name in enumerate(names):
            places.setdefault(name, []).append(row)
        apart = len(places) > 1
        rows = {name: torch.tensor(some, device=device) if apart else None for name, some in places.items()}
        with self._in_place(rows, len(names)):
            yield

    @contextmanager
    def masked(self, masks: Mapping[str | None, Tensor | None]) -> Iterator[None]:
        """The same by masks (N,) of booleans, one an adapter; None is every row. Shapes do not depend on who goes where: all rows go
        through all adapters, and take what is theirs."""
        with self._in_place(masks, next((len(mask) for mask in masks.values() if mask is not None), 0)):
            yield

    @contextmanager
    def _in_place(self, rows: Mapping[str | None, Tensor | None], count: int) -> Iterator[None]:
        """LoRA layers go by these rows; what is in force alone needs no detour."""
        if all(name is None for name in rows):
            yield
            return
        layers = self._layers
        before = [layer.__dict__.get("forward") for layer in layers]
        try:
            for layer in layers:
                layer.__dict__["forward"] = _Routed(layer, rows, count)
            with packed.nothing_known():
                yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.__dict__["forward"] = forward


class _Routed:
    """The forward of one layer during one pass."""

    def __init__(self, layer: Any, rows: Mapping[str | None, Tensor | None], count: int) -> None:
        """`rows` of each adapter are places, or a mask, or None for all."""
        self._layer, self._rows, self._count = layer, rows, count

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        out: Tensor = layer.base_layer(x)
        x_NI, out_NO = x.reshape(-1, x.shape[-1]), out.reshape(-1, out.shape[-1])
        if len(self._rows) > 1 and len(x_NI) != self._count:
            raise ModelError("A layer with adapters sees other rows than the batch has (experts do): name no adapter for this model.")
        for kind, rows in self._rows.items():
            for name in self._adapters(kind):
                mine_NI = x_NI if rows is None or rows.dtype == torch.bool else x_NI[rows]
                A_RI, B_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
                added = ((mine_NI.to(A_RI.dtype) @ A_RI.T) @ B_OR.T) * layer.scaling[name]
                if rows is None:
                    out_NO = (out_NO + added).to(out.dtype)
                elif rows.dtype == torch.bool:
                    out_NO = torch.where(rows[:, None], (out_NO + added).to(out.dtype), out_NO)
                else:
                    out_NO[rows] = (out_NO[rows] + added).to(out.dtype)
        return out_NO.view(out.shape)

    def _adapters(self, kind: str | None) -> list[str]:
        if kind is None:
            return [] if self._layer.disable_adapters else [name for name in self._layer.active_adapters if name in self._layer.lora_A]
        return [kind] if kind in self._layer.lora_A else []
