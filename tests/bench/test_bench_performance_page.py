"""The tables of the page of performance are those of the committed results."""

from __future__ import annotations

import pytest
from bench.performance_page import AIMS, MODULE, PAGE, blocks, growth, lines, memory, start, together
from bench.result import between


@pytest.mark.parametrize("name", ["steps", "growth", "together", "memory", "start"])
def test_the_page_follows_from_the_results(name: str) -> None:
    assert between(PAGE.read_text(), MODULE, name) == blocks()[name]


def test_each_figure_stands_beside_its_aim() -> None:
    found = {
        "share_of_limit": 0.7124,
        "ratio_to_tuned": 8.0,
        "ratio_to_defaults": None,
        "memory_ratio": 0.5,
        "memory_ratio_to_defaults": None,
        "max_relative_loss_difference": 0.0123,
        "profile": [{"share": 0.6, "operation": "a"}, {"share": 0.019, "operation": "b"}],
    }
    choices = {"ratio": 9.0, "largest_difference_nats": 1e-5}
    told = lines({"tools": found}, choices)
    assert told[2] == "| `tools` | **71.2 %** (70 %) | **8.00** (7) |  | 0.50 |  | 1.23 % |"
    assert told[3] == "| `chat` | no result is committed yet | | | | | |"
    assert "9.0 × lm-eval (6)" in told[2 + len(AIMS)]
    assert told[-3:] == ["| 60.0 % | `a` |", "| 40.0 % | everything else |", ""]


def test_where_rounding_hides_the_work_the_difference_is_that_to_fp32() -> None:
    found = {
        "share_of_limit": 0.7,
        "ratio_to_tuned": 3.0,
        "ratio_to_defaults": 4.0,
        "max_relative_loss_difference": 0.05,
        "in_fp32": {"max_loss_difference": 1e-5},
        "max_relative_loss_difference_to_fp32": 0.01,
    }
    assert lines({"pairs": found}, None)[2 + list(AIMS).index("pairs")].endswith("| 1.00 % (to fp32) |")


def test_growth_memory_and_start_say_what_was_measured() -> None:
    points = [{"at": at, "ratio": 2.0, "token_ratio": 3.0, "seconds": {"forest": at}, "unique_tokens": 1} for at in (1, 2)]
    told = growth({"rows": points, "width": points, "length": points, "sharing": points})
    assert told[3] == "| rows under one prompt | 1, 2 | 2.0 (3.0), 2.0 (3.0) |"
    assert "costs 1.00, 2.00 of" in told[-1]
    point = {"kind": "apart", "unique_tokens": 1000, "row_tokens": 2000, "predicted_bytes": 2**30, "peak_bytes": 2**31, "off": -0.5}
    assert memory({"points": [point]})[-1] == "| apart | 1,000 | 2,000 | 1.00 GiB | 2.00 GiB | -50 % |"
    runs = [{"seed": 3, "before": 1.5, "after": after} for after in (0.25, 0.26)]
    found = {"runs": runs, "examples": 9, "batch": 2, "held_out": 4, "mean_difference": 0.01, "spread_of_seeds": 0.02}
    assert together(found)[2] == "| 3 | 1.500 | 0.2500 | 0.2600 | +0.0100 |"
    seconds = {"Sapwood": {"median_seconds": 2.0}, "Sapwood, the first time": {"median_seconds": 8.0}}
    found = {kind: {**seconds, peer: {"median_seconds": 3.0}} for kind, peer in (("train", "TRL"), ("answer", "transformers"))}
    told = start({**found, "ratio_train": 1.5, "ratio_answer": 1.5})
    assert told[-1] == "| the first word | 2.0 s | 8.0 s | 3.0 s (transformers) | 1.50 |"
    assert growth(None) == memory(None) == start(None)
