"""The load of a server, small: what is counted, and that each way in which an answer can go wrong is told apart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from bench.serve_clients import KINDS, Crowd, Expected, pieces, refused
from bench.serve_load import failed, measure, questions

from tiny.folder import write_model


def test_what_an_answer_is() -> None:
    mine, others = Expected("the sky is blue", (8,)), {"the sky is blue": 0, "grass is green": 1}
    assert mine.judge("the sky is blue", others) == "right"
    assert mine.judge("grass is green", others) == "crossed"
    assert mine.judge("the sky was blue", others) == "tie", "it parts where two tokens were as likely"
    assert mine.judge("the day is blue", others) == "wrong", "it parts before that"
    assert mine.judge("", others) == "wrong"


def test_what_a_refusal_is() -> None:
    clear = {"error": {"message": "The body is not JSON.", "type": "invalid_request_error"}}
    assert refused(httpx2.Response(400, json=clear), (400,)) == "refused"
    for response in (httpx2.Response(500, json=clear), httpx2.Response(400, text="no"), httpx2.Response(400, json={"error": "no"})):
        assert refused(response, (400,)) == "refused unclearly"


def test_a_stream_that_breaks_has_no_end() -> None:
    async def told(text: str) -> list[str | None]:
        return [piece async for piece in pieces(httpx2.Response(200, content=text.encode()))]

    said = 'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    assert asyncio.run(told(said + "data: [DONE]\n\n")) == ["a", None]
    assert asyncio.run(told(said)) == ["a"]
    assert asyncio.run(told(said + 'data: {"error": {}}\n\ndata: [DONE]\n\n')) == ["a"]


def test_questions_differ() -> None:
    assert len(set(questions(500))) == 500


def test_nobody_there_is_told_as_lost() -> None:
    crowd = Crowd("http://127.0.0.1:9/v1", "model", ["a"] * len(KINDS), [Expected("", ())] * len(KINDS), 1, 8, 8)
    found = asyncio.run(crowd.round())
    assert {end for _, end in found} == {"lost"}
    assert sum(found.values()) == len(KINDS)


@pytest.mark.slow
def test_the_whole_of_it_on_a_tiny_model(tmp_path: Path) -> None:
    found = measure(write_model(tmp_path / "model"), clients=24, tokens=12, rounds=1, place=tmp_path)
    assert not failed(found), found
    [one] = found["crowd"]["rounds"]
    assert one["outcomes"]["whole"] == {"right": 4}
    assert one["outcomes"]["breaks off its request"] == {"left": 2}
    assert one["outcomes"]["malformed"] == one["outcomes"]["oversized prompt"] == one["outcomes"]["oversized body"] == {"refused": 2}
    assert sum(found["restart"]["outcomes"].values()) == 24
    assert found["stop"]["outcomes"] == {"right": 2}
    assert one["memory_most_mib"] >= one["memory_before_mib"] > 0
    found["totals"]["crossed"] = 1
    assert failed(found)
