"""The page's figures of multiple choice are those of the committed result, and what the bench asks is what lm-eval's tasks ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_gives_the_ratio_that_was_measured() -> None:
    found = json.loads((ROOT / "bench" / "results" / "eval.json").read_text())
    page = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    assert f"**{found['ratio']:.1f} times as fast**" in page
    assert f"differs by more than {found['largest_difference_nats']:.1e} nats" in page
    assert found["largest_difference_nats"] < 1e-4
    assert found["greedy_alike"] == found["requests"] == 400
    assert f"all {found['requests']} are called greedy alike" in page
    settings = found["settings"]
    assert (settings["items"], settings["shots"], settings["options"], settings["threads"]) == (100, 5, 4, 2)
    assert f"{found['ratio']:.0f} times as fast as lm-eval's own backend" in (ROOT / "docs" / "evaluation.md").read_text()


def test_the_requests_share_what_the_page_says() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `eval`)")
    from bench.choices import EvalBench, requests

    asked = [one.args for one in requests(EvalBench(items=6, shots=2, options=3))]
    contexts = [context for context, _ in asked]
    assert len(asked) == 18
    assert len(set(contexts)) == 6, "a question is asked once an option"
    assert len({context[: context.rindex("Question:")] for context in contexts}) == 1, "after the very same examples"
    assert all(option.startswith(" ") for _, option in asked)
