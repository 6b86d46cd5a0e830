"""What a sequence whose numbers broke leaves in a row of the cache reaches nobody, though 0 · NaN is NaN."""

from __future__ import annotations

import pytest
import torch

from generate.prompts_and_engines import Letters, prompts
from sapwood import kernels
from sapwood.generate import Engine
from sapwood.generate.forest_rows import ForestRows
from sapwood.generate.padded import PaddedStep
from sapwood.model import LanguageModel
from sapwood.records import Ended, SamplingParams
from tiny.models import tiny_model


@pytest.mark.parametrize("first", [True, False])
def test_a_row_is_clean_for_who_comes_next(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's operators, which weigh what is masked out with 0; the kernel does not look at it."""
    monkeypatch.setattr(kernels, "cpu_kernels", lambda: None)
    made = Engine(LanguageModel(tiny_model("llama", torch.float32)), Letters(), slots=2, step="padded")
    long, breaks, short = prompts([list(range(5, 30)), [8, 9, 10], [11]])
    params = SamplingParams(max_new_tokens=12)
    [expected] = made.generate([short], params)
    with made.open() as session:
        asked = [(breaks, params), (long, SamplingParams(max_new_tokens=40))]
        added = [session.add(*one) for one in (asked if first else reversed(asked))]
        broken = added[0] if first else added[1]
        for _ in range(4):
            session.step()
        assert isinstance(session._rows, ForestRows)
        step = session._rows.step
        assert isinstance(step, PaddedStep)
        row = min((0, 1), key=lambda place: step._rows[place].length)
        with torch.inference_mode():
            for side in (*step.cache.keys, *step.cache.values):
                side[row, :, : step._rows[row].length] = float("nan")
        while broken.ended is None:
            session.step()
        last = session.add(short, params)
        while last.ended is None:
            session.step()
    assert broken.ended is Ended.ERROR
    assert (last.ended, last.ids) == (expected.ended, list(expected.ids))
