"""The page of generation says what the committed results say, and that there are none where there are none."""

from __future__ import annotations

from bench.generate_page import PAGE, ROWS, between, lines, result_of


def test_the_page_follows_from_the_results() -> None:
    assert between(PAGE.read_text()) == lines(result_of("generate"), result_of("same-answers"))


def test_what_is_committed_has_the_same_tokens() -> None:
    found = result_of("same-answers")
    assert found is None or (found["different"] == 0 and found["tokens"] > 100)


def test_each_figure_has_its_line() -> None:
    speed = {key: 2.0 + place for place, (key, *_) in enumerate(ROWS)}
    answers = {"model": "tiny", "tokens": 7, "prompts": 2, "ties": 1, "different": 0, "logprob_distance": 2e-6}
    told = lines(speed, answers)
    assert told[2] == "| decoding, distinct prompts | transformers, times as fast | 2.00 | 4 |"
    assert told[-1] == "tiny: 7 greedy tokens of 2 answers in fp32, 1 ties, 0 different; log-probabilities within 2.0e-06 of training's."
    assert len(told) == 2 + len(ROWS) + 2
    assert "is committed yet" in lines(None, None)[0]
