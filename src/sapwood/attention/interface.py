"""The door to transformers: one attention function under one name; the forest decides what it does.

transformers calls the function in every attention layer and hands every extra keyword of the model call through, so
the object passed as `forest` reaches it without any model code being copied or patched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from sapwood.errors import ModelError

NAME = "sapwood"
"""The name under which models select ancestor attention (`attn_implementation`)."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What one layer asks for beyond queries, keys and values."""

    layer: int
    scale: float
    window: int | None = None
    """A token sees keys less than this far above it, counted in depth; None sees all."""
    softcap: float | None = None
    sinks_H: Tensor | None = None
    """One learned logit a head that takes attention away from every key."""


class Attention(Protocol):
    """What the keyword `forest` of a model call may be."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Tensor:
        """Queries (B, H, T, K), keys and values with their own number of heads → (B, T, H, K of the values)."""
        ...


def register() -> None:
    """Make `attn_implementation="sapwood"` known to transformers. May be called any number of times."""
    AttentionInterface.register(NAME, _forest_attention)


def for_text(config: Any, name: str) -> str | dict[str, str]:
    """What to set so that the language model alone attends by `name`: towers for images and sounds keep their own attention."""
    return {"text_config": name} if "text_config" in getattr(config, "sub_configs", {}) else name


def _forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    forest: Attention | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if forest is None:
        raise ModelError(
            f"{type(module).__name__} did not hand the forest to its attention. This model family cannot share prefixes in Sapwood; "
            "load it with attention='row by row'."
        )
    if dropout:
        raise ModelError(
            f"{type(module).__name__} asks for attention dropout {dropout}, but shared tokens draw one sample only. "
            "Set attention_dropout to 0."
        )
    call = LayerCall(
        layer=int(getattr(module, "layer_idx", 0) or 0),
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window=sliding_window,
        softcap=softcap,
        sinks_H=s_aux,
    )
    return forest.attend(query, key, value, call), None
