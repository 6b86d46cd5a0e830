"""The limit of a step: the time that the matrix products which LoRA training cannot do without take, each at the speed measured for it.

Counted, for T unique tokens, U distinct places that something is predicted from, and P (query, key) pairs of the forest:

    each linear and its adapter   forward   x Wᵀ, x Aᵀ, h Bᵀ
                                  backward  g B, (g B)ᵀ x, gᵀ h, and where an input needs a gradient g W and (g B) A
    the head, U places            forward   x Wᵀ;  backward  g W
    attention, P pairs a head     forward   2 products;  backward  4

A reference (the model with adapters off, whose log-probabilities an objective reads) adds the forward products without adapters.

Left out on purpose: everything that is no product of matrices (norms, rotary, softmax, SwiGLU, casts, the update, Python), what
an implementation computes twice (recomputed logits or attention), and what it could save beyond shared beginnings (the last
layer's places that nothing is predicted from). The speed of a shape is the best of several tries, in bf16 or fp32 (on a GPU in bf16), all T
rows at once or in pieces, with output in place and operands that stay in the cache: a hard limit, which no step reaches. Where the
first layer's queries and keys have no adapter, three products of its attention are counted too many.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch
import transformers
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from sapwood.forest import plant
from sapwood.model import LanguageModel
from sapwood.records import Example
from sapwood.train.memory import synchronize

PIECES = (512, 1024, 2048)
"""Rows of a product that are tried beside all at once."""
TRIES = 3
TYPES = {"cpu": (torch.bfloat16, torch.float32), "cuda": (torch.bfloat16,)}
IN_A_ROW = {"cpu": 1, "cuda": 10}
"""Products that are clocked together: a GPU is asked for one while it makes another."""


@dataclass(frozen=True)
class Shape:
    """One kind of product. `rows`: [n, inner] · [inner, outer] over the n tokens; `sums`: [inner, n] · [n, outer]."""

    kind: str
    inner: int
    outer: int

    def flops(self, n: int) -> int:
        """Multiplications and additions over n tokens."""
        return 2 * n * self.inner * self.outer


@dataclass(frozen=True)
class Products:
    """How often each shape comes in one pass, forward and backward, and the sizes of head and attention."""

    forward: Counter[Shape]
    bare: Counter[Shape]
    """Of `forward` what is left with adapters off."""
    backward: Counter[Shape]
    head: tuple[int, int]
    """Width and vocabulary."""
    attention: tuple[int, int, int]
    """Layers, query heads, width of a head."""

    def forward_flops(self, size: Size) -> int:
        """Of a forward pass."""
        layers, heads, width = self.attention
        return self._flops(self.forward, size) + 2 * layers * heads * 2 * size.pairs * width

    def reference_flops(self, size: Size) -> int:
        """Of a forward pass with adapters off."""
        layers, heads, width = self.attention
        return self._flops(self.bare, size) + 2 * layers * heads * 2 * size.pairs * width

    def step_flops(self, size: Size) -> int:
        """Of forward and backward."""
        layers, heads, width = self.attention
        return self.forward_flops(size) + self._flops(self.backward, size) + 4 * layers * heads * 2 * size.pairs * width

    def _flops(self, shapes: Counter[Shape], size: Size) -> int:
        linears = sum(count * shape.flops(size.tokens) for shape, count in shapes.items())
        return linears + Shape("rows", *self.head).flops(size.places)


@dataclass(frozen=True)
class Size:
    """Of one step with every common beginning computed once."""

    tokens: int
    places: int
    """Distinct places that something is predicted from."""
    pairs: int
    """(query, key) pairs: each token with itself and all before it."""


def size_of(step: Sequence[Example]) -> Size:
    """The size of a step's forest."""
    forest = plant([row for example in step for row in example.rows], min_saving=1)
    return Size(forest.num_tokens, len(np.unique(forest.hidden_N)), int((forest.positions_T + 1).sum()))


def products_of(model: LanguageModel) -> Products:
    """What a model with a LoRA adapter multiplies: its stock layers without weights, seen by hooks in one pass of shapes.

    The fast paths have no part in it: what is counted does not change with them. Which inputs need a gradient is seen, too.
    """
    forward: Counter[Shape] = Counter()
    bare: Counter[Shape] = Counter()
    backward: Counter[Shape] = Counter()
    config = copy.deepcopy(model.base.config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        (described,) = model.module.peft_config.values()
        stock = peft.get_peft_model(stock, copy.deepcopy(described))
        for layer, rank in _linears(stock):
            layer.register_forward_pre_hook(_counted(layer, rank, forward, bare, backward))
        mask = torch.zeros(1, 1, 2, 2)  # one of four dimensions is taken as it is: making one looks at values, and there are none
        stock(input_ids=torch.zeros(1, 2, dtype=torch.long), attention_mask=mask, use_cache=False)
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return Products(forward, bare, backward, (int(text.hidden_size), model.vocabulary), (int(text.num_hidden_layers), heads, width))


def _linears(stock: Any) -> Iterator[tuple[nn.Module, int]]:
    """The linear layers of a peft model and the rank of each's adapter, 0 where it has none; not the head, which is counted apart."""
    inside = {id(part) for layer in stock.modules() if isinstance(layer, LoraLayer) for part in layer.modules() if part is not layer}
    head = stock.get_base_model().get_output_embeddings()
    for layer in stock.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear):
            (rank,) = layer.r.values()
            yield layer, int(rank)
        elif isinstance(layer, nn.Linear) and layer is not head and id(layer) not in inside:
            yield layer, 0


def _counted(
    layer: Any, rank: int, forward: Counter[Shape], bare: Counter[Shape], backward: Counter[Shape]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    inner, outer = layer.in_features, layer.out_features

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        forward.update([Shape("rows", inner, outer)])
        bare.update([Shape("rows", inner, outer)])
        if inputs[0].requires_grad:
            backward.update([Shape("rows", outer, inner)])
        if rank:
            forward.update([Shape("rows", inner, rank), Shape("rows", rank, outer)])
            backward.update([Shape("rows", outer, rank), Shape("sums", rank, inner), Shape("sums", outer, rank)])
            if inputs[0].requires_grad:
                backward.update([Shape("rows", rank, inner)])

    return look


class Limit:
    """Measures the limit of steps on this machine, now. Tensors are made once; which type is best of a shape is found once."""

    def __init__(self, products: Products, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008 - it has no state
        self.products, self.device = products, device
        self._best: dict[tuple[Any, ...], torch.dtype] = {}

    def seconds(self, step: Sequence[Example]) -> dict[str, float]:
        """The limit of one step, by part: `linears`, `head`, `attention`."""
        size = size_of(step)
        both = self.products.forward + self.products.backward
        linears = sum(count * self._over_tokens(shape, size.tokens) for shape, count in both.items())
        width, vocabulary = self.products.head
        head = self._over_tokens(Shape("rows", width, vocabulary), size.places)
        head += self._over_tokens(Shape("rows", vocabulary, width), size.places)
        return {"linears": linears, "head": head, "attention": self._attention(size, narrow=2, wide=4)}

    def reference_seconds(self, step: Sequence[Example]) -> dict[str, float]:
        """The limit of the reference's pass over the same step, by part."""
        size = size_of(step)
        linears = sum(count * self._over_tokens(shape, size.tokens) for shape, count in self.products.bare.items())
        head = self._over_tokens(Shape("rows", *self.products.head), size.places)
        return {"linears": linears, "head": head, "attention": self._attention(size, narrow=1, wide=1)}

    def _over_tokens(self, shape: Shape, tokens: int) -> float:
        """Seconds of one product over `tokens` rows, at the best of all at once and in pieces."""
        pieces = [tokens, *(piece for piece in PIECES if piece < tokens)]
        return min(self._one(shape, piece) * tokens / piece for piece in pieces)

    def _one(self, shape: Shape, n: int) -> float:
        sizes = ((n, shape.inner), (shape.inner, shape.outer)) if shape.kind == "rows" else ((shape.inner, n), (n, shape.outer))
        return self._fastest((shape, n), *sizes)

    def _attention(self, size: Size, *, narrow: int, wide: int) -> float:
        """Products that give scores (`narrow`) or values, at the speed of blocks as long as the keys that a query sees in the mean."""
        layers, heads, width = self.products.attention
        n = max(1, size.pairs // size.tokens)
        scores = self._fastest(("scores", n), (heads, n, width), (heads, width, n))
        values = self._fastest(("values", n), (heads, n, n), (heads, n, width))
        return layers * (narrow * scores + wide * values) * size.pairs / (n * n)

    def _fastest(self, key: tuple[Any, ...], left: tuple[int, ...], right: tuple[int, ...]) -> float:
        """Seconds of one product at its best type."""
        if key not in self._best:
            self._best[key] = min(TYPES[self.device.type], key=lambda kind: _clocked(left, right, kind, self.device))
        return _clocked(left, right, self._best[key], self.device)


def _clocked(left: tuple[int, ...], right: tuple[int, ...], kind: torch.dtype, device: torch.device) -> float:
    """The least seconds of a product in `TRIES` tries, after one that does not count. A GPU is faster on equal numbers, and gets others."""
    make = torch.randn if device.type == "cuda" else torch.ones
    a, b = (make(shape, dtype=kind, device=device) for shape in (left, right))
    out = torch.matmul(a, b)
    taken = []
    for _ in range(TRIES):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(IN_A_ROW[device.type]):
            torch.matmul(a, b, out=out)
        synchronize(device)
        taken.append((time.perf_counter() - begin) / IN_A_ROW[device.type])
    return min(taken)
