"""Embeddings of tokens that a model has to learn: rows for them, their start, and their training beside an adapter.

In: a model, and ids of tokens it has no (trained) embeddings for. Out: the same model with rows for them in the input and the
output embedding, each at the mean of all trained rows, which moves the model's other predictions least (J. Hewitt, 2021,
"Initializing New Word Embeddings for Pretrained Language Models", nlp.stanford.edu/~johnhew/vocab-expansion.html); and in
`model.new_tokens` the ids whose rows train. With an adapter those rows are peft's `trainable_token_indices`, in fp32, saved
with it; full training trains them as it does all others.

peft copies the whole embedding for each forward, and once more for each look at `.weight`. Its layers get another `forward`
here that computes the same from the frozen matrix and the few trained rows; its classes, names and file format stay.
Left out on purpose: several adapters at once, trained or quantized base embeddings, which run peft's own forward; embeddings
by layer (Gemma 3n), heads with a bias beside an adapter (peft leaves the bias out), both refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from sapwood.errors import ModelError

if TYPE_CHECKING:
    from sapwood.model.language_model import LanguageModel

SHORT = 0.2
"""A row shorter than this share of the median row was hardly trained (Land and Bartolo, arXiv:2405.05417, §3: norms tell)."""

_POSITIONS = re.compile(r"pos|wpe$")
"""In the names of tables of positions, which may have more rows than a small vocabulary."""

BLOCK = 8192
"""Rows that are widened to fp32 at a time: a wide copy of a whole embedding would double its memory."""


def learn_tokens(model: LanguageModel, new: Collection[int], known: Collection[int] = ()) -> list[str]:
    """Make room for the ids `new`, and find those of `known` that look untrained; their rows start at the mean and will train.

    Call it before `add_lora`. Returns sentences for a person: what grew, what looks untrained. Deterministic.
    Raises `ModelError` for a model whose embeddings cannot grow.
    """
    said = []
    new = {*new, *(token for token in known if token >= rows_of(model))}  # of a tokenizer that has outgrown its model
    untrained = _untrained(model, [token for token in known if token not in new])
    if untrained:
        listed = ", ".join(map(str, untrained))
        said.append(f"The embeddings of the template's token ids {listed} look untrained: they start at the mean and are trained too.")
    trained = sorted({*new, *untrained})
    if not trained:
        return said
    if (grown := make_room(model, trained)) is not None:
        said.append(grown)
    elif new:
        said.append(f"The new tokens take rows of the embedding that no other token has; it keeps its {rows_of(model):,} rows.")
    for weight_VD in _embeddings(model):
        _start_at_the_mean(weight_VD, trained, end=min(new, default=len(weight_VD)))
    model.new_tokens = tuple(trained)
    return said


def make_room(model: LanguageModel, tokens: Collection[int]) -> str | None:
    """Grow both embeddings to hold every id of `tokens`; the sentence that says so, or None where there is room.

    Raises `ModelError` for a model with embeddings by layer, or where a row would be made that none of `tokens` is.
    """
    rows, needed = rows_of(model), max(tokens) + 1
    if needed <= rows:
        return None
    gaps = sorted(set(range(rows, needed)) - set(tokens))
    if gaps:
        raise ModelError(
            f"The tokens reach up to id {needed - 1}, but the model's embedding has {rows} rows and nothing says what the ids from "
            f"{gaps[0]} on are. Tokenizer and model do not belong together: load both from one folder."
        )
    ends = {id(model.base.get_input_embeddings()), id(model.base.get_output_embeddings())}
    others = [
        name
        for name, layer in model.base.named_modules()
        if isinstance(layer, nn.Embedding) and id(layer) not in ends and len(layer.weight) >= rows and not _POSITIONS.search(name)
    ]
    if others:
        raise ModelError(
            f"{type(model.base).__name__} has a second embedding of its tokens ({others[0]}), which cannot grow. Choose a template whose "
            "tokens the model has (`--template plain` needs none)."
        )
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it advises on tensor cores and on the mean, which is taken below
    try:
        model.base.resize_token_embeddings(needed, mean_resizing=False)
    finally:
        transformers_logging.set_verbosity(verbosity)
    return f"The embedding grows from {rows:,} to {needed:,} rows for the new tokens."


def rows_of(model: LanguageModel) -> int:
    """Rows of the input embedding."""
    return len(bare(model.base.get_input_embeddings()).weight)


def bare(layer: Any) -> Any:
    """The embedding or head below peft's wrapper, if there is one: its `.weight` costs nothing to look at."""
    if isinstance(layer, ModulesToSaveWrapper):
        return layer.modules_to_save[layer.active_adapters[0]] if _serves_copy(layer) else layer.original_module
    return layer.token_adapter.base_layer if isinstance(layer, TrainableTokensWrapper) else layer


def _serves_copy(layer: Any) -> bool:
    """Whether a layer that is trained whole computes with the trained copy now."""
    return not layer.disable_adapters and len(layer.active_adapters) == 1 and layer.active_adapters[0] in layer.modules_to_save


def token_indices(model: LanguageModel) -> dict[str, list[int]]:
    """What peft's `trainable_token_indices` has to be, by the full name of each layer: one entry where both are tied.

    Raises `ModelError` for a head with a bias: peft would leave the bias out.
    """
    head = model.base.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ModelError(
            f"{type(model.base).__name__} has a head with a bias, which adapter files with new tokens cannot carry. Train all weights with "
            "`--full`, or choose a template whose tokens the model has (`--template plain` needs none)."
        )
    layers = [model.base.get_input_embeddings()]
    if head.weight is not layers[0].weight:
        layers.append(head)
    names = {id(layer): name for name, layer in model.base.named_modules()}
    return {names[id(layer)]: list(model.new_tokens) for layer in layers}


def check_wrapped(model: LanguageModel) -> None:
    """Raise `ModelError` if peft has not wrapped both ends: the rows would train on one side only."""
    ends = (model.base.get_input_embeddings(), model.base.get_output_embeddings())
    if not all(isinstance(layer, TrainableTokensWrapper) for layer in ends):
        raise ModelError(
            f"{type(model.base).__name__}: peft trains new tokens in one of its two embeddings only. Train all weights with `--full`, or "
            "choose a template whose tokens the model has (`--template plain` needs none)."
        )


def head_parts(head: Any) -> tuple[nn.Linear, Tensor | None, Tensor | None] | None:
    """A head as a plain linear layer, and the ids (K,) and trained rows (K, D) that take the place of its own, or None, None.

    None where it is something else, or its adapter is in a state that only peft's own forward serves.
    """
    if isinstance(head, ModulesToSaveWrapper):
        head = bare(head)
    if isinstance(head, nn.Linear):
        return head, None, None
    if not isinstance(head, TrainableTokensWrapper) or not isinstance(bare(head), nn.Linear):
        return None
    adapter = _plain_adapter(head.token_adapter)
    if adapter is None:
        return None
    index_K, rows_KD = _trained(head.token_adapter, adapter)
    return bare(head), index_K, rows_KD


def fuse_tokens(module: nn.Module) -> int:
    """Give every layer of trained tokens inside `module` the fast forward; returns how many have it. May be called again."""
    layers = [layer for layer in module.modules() if type(layer) is TrainableTokensLayer]
    for layer in layers:
        layer.__dict__["forward"] = MethodType(_forward, layer)
    return len(layers)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What such a layer runs: the frozen matrix, and the trained rows in the places of theirs."""
    adapter = _plain_adapter(self)
    base = self.base_layer
    if adapter is None or args or kwargs or not isinstance(base, nn.Embedding | nn.Linear):
        out: Tensor = type(self).forward(self, x, *args, **kwargs)
        return out
    index_K, rows_KD = _trained(self, adapter)
    rows = rows_KD.to(base.weight.dtype)
    if isinstance(base, nn.Linear):
        logits: Tensor = nn.functional.linear(x, base.weight, base.bias)
        bias_K = None if base.bias is None else base.bias[index_K]
        return logits.index_copy_(-1, index_K, nn.functional.linear(x, rows, bias_K))
    is_TK = x.unsqueeze(-1) == index_K
    # a product, not an indexing: the backward of that adds up in no fixed order
    trained = is_TK.to(rows.dtype) @ rows
    scale = self._get_embed_scale()  # Gemma scales inside its embedding
    frozen: Tensor = base(x)
    return torch.where(is_TK.any(-1, keepdim=True), trained if scale is None else trained * scale.to(trained.dtype), frozen)


def _plain_adapter(layer: Any) -> str | None:
    """Name of the one adapter that is active and neither merged nor switched off, over a frozen matrix; or None."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or active[0] not in layer.trainable_tokens_delta:
        return None
    name: str = active[0]
    return None if layer.base_layer.weight.requires_grad else name


def _trained(layer: Any, adapter: str) -> tuple[Tensor, Tensor]:
    rows_KD: Tensor = layer.trainable_tokens_delta[adapter]
    return torch.tensor(layer.token_indices[adapter], device=rows_KD.device), rows_KD


def _embeddings(model: LanguageModel) -> list[Tensor]:
    """The weights of the input and the output embedding; one where they are tied."""
    both = [bare(layer).weight for layer in (model.base.get_input_embeddings(), model.base.get_output_embeddings())]
    return both[:1] if both[0] is both[1] else both


def _start_at_the_mean(weight_VD: Tensor, tokens: Sequence[int], *, end: int, block: int = BLOCK) -> None:
    """Set the rows `tokens` to the mean of the others before `end`, behind which all is padding.

    Summed in fp32 or wider.
    """
    wide = torch.promote_types(weight_VD.dtype, torch.float32)
    with torch.no_grad():
        kept_V = torch.ones(end, dtype=wide, device=weight_VD.device)
        kept_V[[token for token in tokens if token < end]] = 0
        blocks = [slice(first, min(first + block, end)) for first in range(0, end, block)]
        total_D = torch.stack([kept_V[rows] @ weight_VD[rows].to(wide) for rows in blocks]).sum(0)
        weight_VD[list(tokens)] = (total_D / kept_V.sum()).to(weight_VD.dtype)


def _untrained(model: LanguageModel, tokens: Sequence[int]) -> list[int]:
    """Those whose row in either embedding is far shorter than the median row, or the very copy of another."""
    found: set[int] = set()
    for weight_VD in _embeddings(model) if tokens else ():
        with torch.no_grad():
            wide = torch.promote_types(weight_VD.dtype, torch.float32)
            norms_V = torch.cat([torch.linalg.vector_norm(rows.to(wide), dim=-1) for rows in torch.split(weight_VD, BLOCK)])
            short = SHORT * norms_V.median()
            for token in tokens:
                others = (norms_V == norms_V[token]).nonzero().flatten().tolist()
                if norms_V[token] < short or any(other != token and torch.equal(weight_VD[other], weight_VD[token]) for other in others):
                    found.add(token)
    return sorted(found)
