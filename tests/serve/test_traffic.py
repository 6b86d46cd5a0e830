"""Traffic that is kept: what was asked and what the client got, whole or streamed, readable where reviews and item sets begin."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from sapwood.errors import StorageError
from sapwood.recipes.logs import conversations_of_logs
from sapwood.review.sources import read_source
from sapwood.run import read_records
from sapwood.serve.traffic import Traffic, joined
from serve.serving import serving
from tiny.folder import write_model

pytestmark = pytest.mark.filterwarnings("ignore:.*websockets.*:DeprecationWarning")


def test_what_is_kept_is_what_the_client_got(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "traffic.jsonl"
    traffic = Traffic(file)
    with serving(write_model(tmp_path / "model"), traffic=traffic) as server:
        whole = server.ask("the colour of the sky").json()["choices"][0]["message"]["content"]
        lines = server.ask("the colour of the grass", stream=True).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        server.ask("no", temperature=-1)
        continued = server.post("/completions", {"model": "tiny", "prompt": "the sky", "max_tokens": 4, "temperature": 0}).json()
    traffic.close()
    records = read_records(file)
    assert [record["response"]["choices"][0].get("message", {}).get("content") for record in records[:2]] == [whole, _text(chunks)]
    assert records[2]["response"]["choices"][0]["text"] == continued["choices"][0]["text"]
    assert len(records) == 3, "what was refused has no answer"
    assert file.stat().st_mode & 0o777 == 0o600
    chats = tmp_path / "chats.jsonl"
    chats.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    found = read_source(chats)
    assert (found.words, len(found.candidates)) == ("a served model's traffic", 2)
    assert [one.answers["answer"]["content"] for one in found.candidates] == [whole, _text(chunks)]
    conversations, unread = conversations_of_logs([str(chats)])
    assert (len(conversations), dict(unread)) == (2, {})


def _text(chunks: list[dict]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def test_pieces_are_joined_and_an_arm_becomes_its_answer(tmp_path: Path) -> None:
    pieces = [
        {"role": "assistant"},
        {"reasoning_content": "hm"},
        {"content": "I "},
        {"content": "look."},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    chunks = [
        {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": piece, "finish_reason": None}]} for piece in pieces
    ]
    chunks.append({"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    response = joined([*chunks, {"id": "x", "choices": [], "usage": {"prompt_tokens": 3}}])
    (choice,) = response["choices"]
    call = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": '{"at": 1}'}}
    assert choice["message"] == {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]}
    assert (choice["finish_reason"], response["usage"], response["id"]) == ("tool_calls", {"prompt_tokens": 3}, "x")
    traffic = Traffic(tmp_path / "t.jsonl")
    traffic.keep({"messages": [{"role": "user", "content": "Where?"}]}, response, "tuned")
    (one,) = read_source(tmp_path / "t.jsonl").candidates
    assert set(one.answers) == {"tuned"}
    traffic.close()


def test_a_file_that_cannot_be_written_fails_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    traffic = Traffic(tmp_path / "t.jsonl")
    os.close(traffic._file)
    traffic.keep({}, {}, None)
    assert traffic.lost == 1
    assert "was not kept" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below" / "traffic.jsonl", tmp_path / "file" / "traffic.jsonl"):
        with pytest.raises(StorageError, match="Choose another file"):
            Traffic(path)


def test_what_a_kill_has_cut_short_costs_no_other_record(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(b'{"at": 1, "requ')
    traffic = Traffic(file)
    traffic.keep({"q": 1}, {}, None)
    traffic.keep({"q": 2}, {}, None)
    traffic.close()
    torn, *whole = file.read_text().splitlines()
    assert torn == '{"at": 1, "requ'
    assert [json.loads(line)["request"]["q"] for line in whole] == [1, 2]


def test_pieces_without_their_optional_parts_are_joined() -> None:
    chunks = [{"choices": [{"index": None, "delta": {"content": "a"}}]}, {"choices": [{"delta": None, "finish_reason": "stop"}]}]
    assert joined(chunks)["choices"][0]["message"]["content"] == "a"
