"""The limit's count of operations is torch's own count of a stock model's pass, forward and backward."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from bench.limit import Limit, Products, Shape, Size, products_of, size_of
from torch.utils.flop_counter import FlopCounterMode

from sapwood.attention import register
from sapwood.model import LanguageModel, LoraConfig, add_lora
from sapwood.records import Example, Row
from tiny.models import tiny_model

TOKENS = 13


def adapted(name: str, targets: tuple[str, ...] = ("all-linear",)) -> LanguageModel:
    register()
    return add_lora(LanguageModel(tiny_model(name, torch.float32), probe=False), LoraConfig(r=4, targets=targets), 0)


def counted_by_torch(model: LanguageModel) -> tuple[int, int, int]:
    """Operations of a stock model over one row with logits everywhere: forward, with adapters off, and forward and backward."""
    stock: Any = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(model.base.config), attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by an old name
        stock = peft.get_peft_model(stock, copy.deepcopy(model.module.peft_config["default"]))
    with FlopCounterMode(display=False) as both:
        with FlopCounterMode(display=False) as forward:
            logits = stock(input_ids=torch.arange(TOKENS)[None], use_cache=False).logits
        logits.sum().backward()
    with FlopCounterMode(display=False) as bare, stock.disable_adapter():
        stock(input_ids=torch.arange(TOKENS)[None], use_cache=False)
    return forward.get_total_flops(), bare.get_total_flops(), both.get_total_flops()


@pytest.mark.parametrize(("targets", "spared"), [(("all-linear",), 0), (("v_proj", "down_proj"), 3)])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_operations_are_those_that_torch_counts(name: str, targets: tuple[str, ...], spared: int) -> None:
    model = adapted(name, targets)
    products = products_of(model)
    everywhere = Size(TOKENS, TOKENS, TOKENS * TOKENS)  # eager attention multiplies the upper half of its square, too
    forward, bare, both = counted_by_torch(model)
    assert products.forward_flops(everywhere) == forward
    assert products.reference_flops(everywhere) == bare < forward
    _, heads, width = products.attention  # without adapters on queries and keys, the first layer's attention needs one product of four
    assert products.step_flops(everywhere) == both + spared * heads * 2 * TOKENS * TOKENS * width


def test_nothing_below_the_first_adapter_needs_a_gradient() -> None:
    products = products_of(adapted("llama"))
    layers, width = 3, 32
    assert products.forward[Shape("rows", width, width)] == 2 * layers, "queries and outputs"
    assert products.backward[Shape("rows", width, width)] == 2 * layers - 1, "the first layer's queries read a frozen embedding"


def test_a_shared_beginning_counts_once() -> None:
    prompt = np.arange(20)
    rows = [Row(prompt, np.array([token, 5]), np.ones(2, np.float32)) for token in (40, 41, 42)]
    size = size_of([Example((row,)) for row in rows])
    assert size == Size(tokens=23, places=4, pairs=20 * 21 // 2 + 3 * 21)
    assert size_of([Example(tuple(rows))]) == size
    alone = size_of([Example((rows[0],))])
    assert alone == Size(tokens=21, places=2, pairs=21 * 22 // 2)


def test_every_product_is_measured() -> None:
    products = products_of(adapted("llama"))
    step = [Example((Row(np.arange(700) % 97, np.arange(5), np.ones(5, np.float32)),))]
    limit = Limit(products)
    found = limit.seconds(step)
    assert set(found) == {"linears", "head", "attention"}
    assert all(seconds > 0 for seconds in found.values())
    shapes = {key[0] for key in limit._best if isinstance(key[0], Shape)}
    assert shapes >= set(products.forward) | set(products.backward)
    reference = limit.reference_seconds(step)
    assert set(reference) == set(found)
    assert 0 < sum(reference.values()) < sum(found.values())


def test_more_of_everything_is_more() -> None:
    products: Products = products_of(adapted("llama"))
    base = Size(100, 10, 5050)
    for larger in (Size(101, 10, 5050), Size(100, 11, 5050), Size(100, 10, 5051)):
        assert products.forward_flops(larger) > products.forward_flops(base)
        assert products.step_flops(larger) > products.step_flops(base)
