"""A decode step by the kernel is the one by torch's operators, for every width of heads and whatever is in the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from generate.prompts_and_engines import Letters, ids_of, nested_prompts, prompts
from sapwood import kernels
from sapwood.attention import register
from sapwood.attention.interface import LayerCall
from sapwood.generate import Engine, decode
from sapwood.generate.decode import WIDTHS, DecodeAttention, OwnCache
from sapwood.generate.kept import Apart
from sapwood.generate.tree import Node
from sapwood.model import LanguageModel
from sapwood.records import Row, SamplingParams

register()
pytestmark = pytest.mark.skipif(kernels.cpu_kernels() is None, reason=f"no kernels here: {kernels.why_not()}")
LENGTHS = [0, 1, 15, 16, 17, 100]


def step(dtype: torch.dtype, width: int, heads: tuple[int, int], window: int | None, above: tuple[int, ...] = ()) -> torch.Tensor:
    """Output of one step, (1, N, H, K), and what it wrote. `above` are the tokens of kept nodes, the first of which all rows lie below."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    cache = OwnCache([(draw(heads[1], 1, width), draw(heads[1], 1, width))])
    cache.resize(len(LENGTHS) + 1, 101)
    for side in (cache.keys, cache.values):
        side[0] = draw(*side[0].shape)
    length_N = torch.tensor(LENGTHS)
    num, depth = len(LENGTHS), 0
    groups = []
    for index, length in enumerate(above):
        node = Node(np.zeros(length, np.int64), depth, None)
        node.layers = Apart([(draw(heads[1], length, width), draw(heads[1], length, width))])
        groups.append((node, torch.arange(index, num, 2) if index else None))
        depth += length
    attention = DecodeAttention(cache, length_N, torch.full_like(length_N, depth), groups)
    call = LayerCall(0, width**-0.5, window)
    out = attention.attend(draw(1, heads[0], num, width), draw(1, heads[1], num, width), draw(1, heads[1], num, width), call)
    return torch.cat([out.flatten(), cache.keys[0].flatten(), cache.values[0].flatten()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (14, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 1, 16, 50])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_a_step_is_the_step_of_torchs_operators(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, heads: tuple[int, int], window: int | None, width: int
) -> None:
    found = step(dtype, width, heads, window)
    monkeypatch.setattr(decode, "WIDTHS", frozenset())
    expected = step(dtype, width, heads, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 50, 600])
@pytest.mark.parametrize("above", [(1,), (16, 3), (511, 512), (513, 1030, 5)])
@pytest.mark.parametrize("heads", [(9, 3), (14, 2), (2, 2)])
def test_a_step_below_nodes_is_the_step_of_torchs_operators(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, window: int | None, above: tuple[int, ...], heads: tuple[int, int]
) -> None:
    found = step(dtype, 32, heads, window, above)
    monkeypatch.setattr(decode, "WIDTHS", frozenset())
    torch.testing.assert_close(found, step(dtype, 32, heads, window, above), rtol=0, atol=2e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("width", sorted(WIDTHS))
def test_every_width_is_served(width: int, dtype: torch.dtype, atol: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = step(dtype, width, (2, 1), None)
    monkeypatch.setattr(kernels, "cpu_kernels", lambda: None)
    torch.testing.assert_close(found, step(dtype, width, (2, 1), None), rtol=0, atol=atol)


def test_threads_change_no_bit() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = step(torch.bfloat16, 64, (9, 3), None, (700, 20))
        torch.set_num_threads(3)
        assert torch.equal(one, step(torch.bfloat16, 64, (9, 3), None, (700, 20)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("schedule", [{}, {"slots": 4, "min_saving": 1, "keep_from": 30}])
@pytest.mark.parametrize("window", [None, 8])
def test_the_engine_with_it_is_the_path_of_training(schedule: dict[str, Any], window: int | None) -> None:
    config = transformers.MistralConfig(
        vocab_size=97, hidden_size=128, intermediate_size=144, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, max_position_embeddings=256, sliding_window=window, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LanguageModel(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sapwood").eval())
    engine = Engine(model, Letters(), pack=True, **schedule)
    found = engine.generate(prompts(nested_prompts(2)), SamplingParams(max_new_tokens=14, temperature=1.0, seed=3))
    rows = [Row(np.array(one.prompt.ids), np.array(one.ids), np.ones(len(one.ids), np.float32)) for one in found]
    for completion, expected in zip(found, model.logprobs(rows), strict=True):
        np.testing.assert_allclose(completion.logprobs, expected, rtol=0, atol=1e-5)
    unpacked = Engine(model, Letters(), pack=False, **schedule)
    assert ids_of(unpacked.generate(prompts(nested_prompts(2)), SamplingParams(max_new_tokens=14, temperature=1.0, seed=3))) == ids_of(
        found
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"length_N": torch.tensor([4, 128])},
        {"length_N": torch.tensor([4, -1])},
        {"length_N": torch.tensor([4])},
        {"rows": 1},
        {"heads": 3},
        {"width": 32},
        {"node": (2, 7, 32)},
        {"node": (1, 7, 16)},
        {"below": torch.tensor([0, 2])},
        {"below": torch.tensor([-1])},
    ],
    ids=str,
)
def test_what_does_not_belong_together_is_refused_before_memory_is_touched(wrong: dict[str, Any]) -> None:
    given = {"length_N": torch.tensor([4, 5]), "rows": 2, "heads": 4, "width": 16, "node": (2, 7, 16), "below": torch.tensor([1]), **wrong}
    cache = torch.zeros(given["rows"], 2, 128, 16)
    query, key = torch.zeros(given["heads"], 2, given["width"]), torch.zeros(2, 2, given["width"])
    node = torch.zeros(*given["node"])
    served = kernels.cpu_kernels()
    assert served is not None
    with pytest.raises(RuntimeError, match=r"belong together|room for one token"):
        served.decode_attention(query, key, key, cache, cache.clone(), given["length_N"], 0, 1.0, [node], [node], [given["below"]])
