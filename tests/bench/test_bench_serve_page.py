"""The page of serving says what the committed result of the load says, and that there is none where there is none."""

from __future__ import annotations

from bench.result import between, result_of
from bench.serve_load import failed
from bench.serve_page import MODULE, PAGE, lines

FOUND = {
    "model": "tiny",
    "clients": 8,
    "tokens": 12,
    "different_answers": 7,
    "commit": "abc",
    "crowd": {
        "rounds": [
            {
                "memory_before_mib": 400,
                "memory_most_mib": 410,
                "outcomes": {
                    "whole": {"right": 2},
                    "streamed": {"right": 1, "tie": 1},
                    "leaves in the middle": {"left": 1},
                    "malformed": {"refused": 2},
                    "oversized body": {"refused unclearly": 1},
                },
            }
        ],
        "left_behind": {"requests_under_way": 0, "sequences_running": 1},
    },
    "restart": {"killed_while_asked": True, "outcomes": {"right": 8, "failed": 0}},
    "stop": {"outcomes": {"right": 1}, "asked_afterwards": "no connection", "status": 0},
}


def test_the_page_follows_from_the_result() -> None:
    assert between(PAGE.read_text(), MODULE) == lines(result_of("serve-load"))


def test_what_is_committed_has_nothing_lost_or_crossed() -> None:
    found = result_of("serve-load")
    assert found is None or not failed(found)


def test_everything_that_was_counted_is_told() -> None:
    told = lines(FOUND)
    assert told[2] == (
        "| 8 clients at once | asked for an answer: 3 right, 1 tie; asked for what cannot be: 2 refused, 1 refused unclearly; "
        "went away: 1 left |"
    )
    assert told[3] == "| memory of the server | 400 MiB before, 410 MiB at most |"
    assert told[4] == "| left behind | 0 requests under way, 1 sequences running |"
    assert told[5] == "| killed while they asked, and started again | 8 clients of `sapwood.remote`: 8 right |"
    assert told[6] == "| told to stop while 1 stream | 1 right; asked afterwards: no connection; ended with status 0 |"
    assert told[-1] == "tiny, answers of 12 tokens, 7 of them different, commit abc."
    assert "is committed yet" in lines(None)[0]
