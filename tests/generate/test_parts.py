"""Parts joined by their log-sum-exp are one attention, by the kernel and written out, with soft caps, sinks and windows."""

from __future__ import annotations

import pytest
import torch

from generate.prompts_and_engines import engine, ids_of, nested_prompts, prompts
from sapwood.attention.dense import masked_attention
from sapwood.attention.interface import LayerCall
from sapwood.generate.parts import attend_part, drain_into_sinks, join, sees
from sapwood.records import SamplingParams


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_two_parts_are_one_attention(flash: bool, softcap: float | None, sinks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not flash:
        monkeypatch.setattr("sapwood.generate.parts.flash_is_available", lambda: False)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, 8, dtype=torch.float64) for heads, length in ((6, 5), (2, 9), (2, 9)))
    call = LayerCall(0, 0.6, None, softcap, torch.randn(6, dtype=torch.float64) if sinks else None)
    mask = torch.rand(5, 9) < 0.6
    mask[:, 0] = True  # every query sees something of the first part
    mask[2, 4:] = False  # and one sees nothing of the second
    out, lse = attend_part(query, key[:, :, :4], value[:, :, :4], call, sight=sees(mask[None, :, :4], query.dtype))
    join(out, lse, *attend_part(query, key[:, :, 4:], value[:, :, 4:], call, sight=sees(mask[None, :, 4:], query.dtype)))
    if call.sinks_H is not None:
        drain_into_sinks(out, lse, call.sinks_H.view(1, -1, 1))
    torch.testing.assert_close(out, masked_attention(query, key, value, mask, call), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_engine_needs_no_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, params = nested_prompts(6), SamplingParams(max_new_tokens=8)
    schedule = {"slots": 4, "min_saving": 1, "keep_from": 20}
    expected = ids_of(engine(name, **schedule).generate(prompts(ids), params))
    monkeypatch.setattr("sapwood.generate.parts.flash_is_available", lambda: False)
    assert ids_of(engine(name, **schedule).generate(prompts(ids), params)) == expected
