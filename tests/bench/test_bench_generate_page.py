"""The page of generation says what the committed results say, and that there are none where there are none."""

from __future__ import annotations

from bench.generate_page import MODULE, PAGE, ROWS, lines, speeds
from bench.result import between, result_of


def test_the_page_follows_from_the_results() -> None:
    assert between(PAGE.read_text(), MODULE) == lines(speeds(), result_of("same-answers"), result_of("constrained"))


def test_what_is_committed_has_the_same_tokens() -> None:
    found = result_of("same-answers")
    assert found is None or (found["different"] == 0 and found["tokens"] > 100 and found["logprob_distance_fp64"] < 1e-9)


def test_each_figure_has_its_line() -> None:
    speed = {key: 2.0 + place for place, (key, *_) in enumerate(ROWS)}
    answers = {"model": "tiny", "tokens": 7, "prompts": 2, "ties": 1, "different": 0, "logprob_distance": 2e-5}
    answers |= {"logprob_distance_fp64": 1e-12, "training_to_itself": 1e-5}
    held = {"schemas": 1000, "valid": 1000, "overhead_wall": 0.07, "overhead_wall_lowest": 0.04, "overhead_wall_highest": 0.091}
    told = lines({"this": speed, "that": dict.fromkeys(speed, 9.0)}, answers, held)
    assert told[0] == "| | against | this | that | aim |"
    assert told[2] == "| decoding, distinct prompts | transformers, times as fast | 2.00 | 9.00 | 4 |"
    assert told[-1].startswith(
        "tiny: 7 greedy tokens of 2 answers in fp32, 1 ties, 0 different; log-probabilities are at most 2.0e-05 from"
    )
    assert "training's own are 1.0e-05 from themselves when rows run in one pass or alone, and 1e-12 in fp64." in told[-1]
    assert told[-3].endswith("(least, median, most of the rounds; aim: 10 %): 4.0 %, 7.0 %, 9.1 %.")
    assert len(told) == 2 + len(ROWS) + 4
    assert "is committed yet" in lines({}, None, None)[0]


def test_constraints_held_and_cost_what_was_aimed_at() -> None:
    found = result_of("constrained")
    assert found is not None
    assert found["ended"] == found["valid"] == found["schemas"] == 1000
    assert found["overhead_wall"] < 0.1
