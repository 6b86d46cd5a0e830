"""What answers took is gone when training begins, and after each look at questions under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from sapwood.generate import Engine
from sapwood.model import packed
from sapwood.recipes import TuneConfig, chain, tune
from sapwood.recipes.arms import EvalConfig
from sapwood.recipes.prepare import DataConfig
from sapwood.train import SftConfig
from tiny.folder import write_model, write_rows


def test_training_meets_no_copies_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 1)
    monkeypatch.setattr(packed, "_COPIES", WeakKeyDictionary())
    copies: dict[str, list[int]] = {"answered": [], "trained": []}
    generate, train = Engine.generate, chain.sft

    def counting(self: Engine, *given: Any, **named: Any) -> Any:
        found = generate(self, *given, **named)
        copies["answered"].append(len(packed._COPIES))
        return found

    def looking(*given: Any, report: Any, **named: Any) -> Any:
        def after(*words: Any) -> None:
            copies["trained"].append(len(packed._COPIES))
            report(*words)

        copies["trained"].append(len(packed._COPIES))
        return train(*given, report=after, **named)

    monkeypatch.setattr(Engine, "generate", counting)
    monkeypatch.setattr(chain, "sft", looking)
    config = TuneConfig(
        data=(str(write_rows(tmp_path / "my.jsonl", 60)),),
        model=str(write_model(tmp_path / "model")),
        out=tmp_path / "run",
        dtype="fp32",
        rows=DataConfig(held_out=12),
        evaluation=EvalConfig(max_new_tokens=4, shots=()),
        train=SftConfig(budget=512, eval_every=2),
    )
    tune(config)
    assert min(copies["answered"]) > 0, "answers are given by copies"
    assert set(copies["trained"]) == {0}
