"""Every request gets an answer or a clear error: strangers, crowds, odd bodies, clients that leave, an engine that fails, a stop."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from sapwood.serve.app import Front, make_app
from sapwood.serve.limits import Access
from sapwood.serve.running import finish
from serve.serving import TOKEN, Serving, serving, with_limits
from tiny.folder import write_model

LONG = {"max_tokens": 400, "stop": ["never said \x00"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("faults") / "model")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with serving(folder, with_limits(max_body=20_000, max_requests=3, max_new_tokens=450)) as running:
        yield running


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold soon; other threads have to do it."""
    until = time.monotonic() + 20
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    return holds()


def complaint(response: httpx2.Response, status: int) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return f"{error['param']}: {error['message']}"


def test_strangers_learn_nothing(server: Serving) -> None:
    for token in (None, "Basic", "let-me-i", TOKEN + "x", "ünicode"):
        headers = {"authorization": f"Bearer {token}".encode()} if token is not None else {}
        for path in ("/models", "/chat/completions"):
            method = httpx2.get if path == "/models" else httpx2.post
            response = method(server.url + path, headers=headers, trust_env=False)
            assert "missing or wrong" in complaint(response, 401)
            assert TOKEN not in response.text
    assert server.post("/chat/completions", {}, token="second").status_code == 400, "each token of the list opens"
    assert httpx2.get(server.url.removesuffix("/v1") + "/health", trust_env=False).json() == {"status": "ok"}


def test_without_tokens_only_this_machine_is_answered(server: Serving) -> None:
    """A page in a browser can turn its own name to this machine, but not the name that it asks under."""

    async def status(host: str) -> int:
        app = make_app(Front(server.worker, server.front.served, Access(())))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as client:
            return (await client.get("http://127.0.0.1/v1/models", headers={"host": host})).status_code

    for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
        assert asyncio.run(status(host)) == 200
    for host in ("evil.example", "evil.example:8000", "10.0.0.3", "[", ""):
        assert asyncio.run(status(host)) == 403


MESSAGES = [{"role": "user", "content": "hi"}]
ODD: dict[str, tuple[Any, str]] = {
    "no object": ([1], "JSON object"),
    "no model": ({"messages": MESSAGES}, "model: `model` is missing"),
    "no messages": ({"messages": []}, "messages: `messages` is a list"),
    "a role nobody knows": ({"messages": [{"role": "wizard", "content": "x"}]}, "messages: "),
    "a message that is none": ({"messages": ["hi"]}, "messages: "),
    "a misspelt field": ({"temprature": 1}, "temprature: `temprature` is not served here. Did you mean 'temperature'?"),
    "a misspelt message key": ({"messages": [{"role": "user", "content": "hi", "contnet": "x"}]}, "contnet"),
    "too hot": ({"temperature": 9}, "temperature: `temperature` is 9; give a number from 0 to 2"),
    "text for a number": ({"top_p": "high"}, "top_p: "),
    "true for a number": ({"n": True}, "n: "),
    "too many": ({"n": 99}, "n: `n` is 99; give a whole number from 1 to 16"),
    "too long": ({"max_tokens": 999}, "max_tokens: max_tokens is 999; this server writes at most 450"),
    "nan": ({"stop": [""]}, "stop: "),
    "odd stream options": ({"stream_options": {"include_usage": True}}, "stream_options: `stream_options` needs"),
    "alternatives of nothing": ({"top_logprobs": 3}, "top_logprobs: "),
    "a choice of no tool": ({"tool_choice": "required"}, "tool_choice: "),
    "a tool that is none": ({"tools": [{"type": "function"}]}, "tools: broken tools"),
    "tools that the template has no place for": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "messages: "),
    "an unknown format": ({"response_format": {"type": "xml"}}, "response_format: "),
    "a template argument nobody reads": ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs: "),
    "a picture for a model without eyes": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
        "messages: ",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_bodies_are_refused_by_name(server: Serving, name: str) -> None:
    body, words = ODD[name]
    if isinstance(body, dict) and name != "no model":
        body = {"model": "tiny", "messages": MESSAGES, **body}
    assert words in complaint(server.post("/chat/completions", body), 400)


def test_what_is_no_json_or_too_much_of_it(server: Serving) -> None:
    def send(content: bytes, kind: str = "application/json") -> httpx2.Response:
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": kind}
        return httpx2.post(server.url + "/chat/completions", content=content, headers=headers, trust_env=False)

    assert "not JSON" in complaint(send(b'{"model": '), 400)
    assert "not JSON" in complaint(send(b"[" * 19_000), 400)
    assert "not JSON" in complaint(send(b'{"model": "\xff"}'), 400)
    assert "larger than 20,000 bytes" in complaint(send(b" " * 20_001), 413)
    assert "application/json" in complaint(send(b"{}", "text/plain"), 415)
    assert "There is no GET /v1/nowhere here. There are /v1/chat/completions (POST)" in complaint(
        httpx2.get(server.url + "/nowhere", trust_env=False), 404
    )


def slowed(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make answers with stop strings take seconds, however fast the machine is: each of their tokens is decoded once more."""
    inner = server.chat.decode

    def decode(*arguments: Any, **more: Any) -> str:
        time.sleep(0.02)
        return inner(*arguments, **more)

    monkeypatch.setattr(server.chat, "decode", decode)


def test_clients_that_leave_stop_costing(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(server, monkeypatch)
    body = {"model": "tiny", "messages": MESSAGES, "temperature": 0, **LONG}
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx2.stream(
        "POST", server.url + "/chat/completions", json={**body, "stream": True}, headers=headers, trust_env=False
    ) as response:
        first = next(response.iter_raw())
        assert server.front.under_way == 1, first
    assert eventually(lambda: server.front.under_way == 0 and server.worker.load[0] == 0)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(server.url + "/chat/completions", json={**body, "n": 16}, headers=headers, trust_env=False, timeout=0.05)
    assert eventually(lambda: server.front.under_way == 0 and server.worker.load[0] == 0)
    assert server.ask().status_code == 200


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_client_that_leaves_before_its_first_piece_leaves_nothing_behind(server: Serving, version: str) -> None:
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "temperature": 0, "stream": True, **LONG}).encode()
    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    scope |= {"asgi": {"spec_version": version}, "http_version": "1.1", "scheme": "http", "client": None, "server": None}
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        if version == "2.4":
            raise OSError("the client has left")
        await asyncio.sleep(30)

    async def main() -> None:
        front = Front(server.worker, server.front.served, Access((TOKEN,)))
        with suppress(Exception):  # how the server hears that nobody is there is its own affair
            await make_app(front)(scope, receive, send)
        assert front.under_way == 0

    asyncio.run(main())
    assert eventually(lambda: server.worker.load == (0, 0))


def test_more_than_there_is_room_for_come_back_later(server: Serving) -> None:
    release = threading.Event()
    inner = server.engine.chat_like.parse  # held here, answers are done but not told

    def held(*arguments: Any) -> Any:
        release.wait(20)
        return inner(*arguments)

    server.engine.chat_like.parse = held  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(3) as pool:
            under_way = [pool.submit(server.ask) for _ in range(3)]
            assert eventually(lambda: server.front.under_way == 3)
            refused = server.ask()
            release.set()
            answers = [one.result().json()["choices"][0]["message"]["content"] for one in under_way]
    finally:
        release.set()
        del server.engine.chat_like.parse
    assert "3 requests are under way" in complaint(refused, 503)
    assert refused.headers["retry-after"] == "1"
    assert len(set(answers)) == 1


def test_a_rate_holds_for_each_token(folder: Path) -> None:
    with serving(folder, with_limits(requests_a_minute=2)) as server:
        assert [server.ask(max_tokens=1).status_code for _ in range(3)] == [200, 200, 429]
        refused = server.ask()
        assert "More than 2 requests a minute" in complaint(refused, 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1}
        assert server.post("/chat/completions", body, token="second").status_code == 200


def test_crowds_get_their_own_answers(folder: Path) -> None:
    """Many at once, whole and streamed: each gets what it gets alone."""
    with serving(folder, slots=8) as server:
        texts = [f"the colour of {number}" for number in range(12)]

        def whole(text: str) -> str:
            return str(server.ask(text).json()["choices"][0]["message"]["content"])

        def streamed(text: str) -> str:
            lines = [line[6:] for line in server.ask(text, stream=True).text.splitlines() if line.startswith("data: ")]
            assert lines[-1] == "[DONE]"
            return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])

        alone = [whole(text) for text in texts]
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(whole, texts)) == alone
            assert list(pool.map(streamed, texts)) == alone
        page = httpx2.get(server.url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False).text
        assert 'sapwood_requests_total{path="/v1/chat/completions",status="200"} 36' in page
        assert "sapwood_request_seconds_count 36" in page
        assert "sapwood_requests_under_way 0" in page


def test_an_engine_that_fails_fails_those_under_way_and_no_others(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = server.ask().json()["choices"][0]["message"]
    monkeypatch.setattr(server.engine.model, "logits", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in complaint(server.ask("something new"), 503)
    stream = server.ask("something else", stream=True)
    assert "ZeroDivisionError" in stream.text
    assert "[DONE]" not in stream.text, "a cut stream does not look whole"
    monkeypatch.undo()
    assert server.ask().json()["choices"][0]["message"] == expected


def test_what_memory_can_never_hold_is_the_requests_own_fault(folder: Path) -> None:
    """A server's error would be asked again, and never answered."""
    with serving(folder, memory=300 * 256) as server:  # 300 tokens of this model
        assert "Ask for fewer new tokens" in complaint(server.ask(max_tokens=400), 400)
        assert "Ask for fewer new tokens" in server.ask(max_tokens=400, stream=True, n=2).text
        assert server.ask().status_code == 200
        assert eventually(lambda: server.worker.load == (0, 0))


def test_a_slow_reader_gets_the_whole(server: Serving) -> None:
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "temperature": 0, "stream": True, "max_tokens": 200}).encode()
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as line:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n"
        line.sendall(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        for byte in range(0, len(body), 40):
            line.sendall(body[byte : byte + 40])
        data = b""
        while piece := line.recv(97):
            data += piece
    assert b"data: [DONE]" in data


def test_a_stop_lets_answers_end_and_cuts_the_rest_with_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder) as server, ThreadPoolExecutor(2) as pool:
        slowed(server, monkeypatch)
        whole = pool.submit(server.ask, **LONG)
        streamed = pool.submit(server.ask, stream=True, **LONG)
        assert eventually(lambda: server.front.under_way == 2)
        asyncio.run(finish(server.front, grace=0.0))
        assert "The server is stopping" in complaint(whole.result(), 503)
        assert "The server is stopping" in streamed.result().text
        assert "The server is stopping" in complaint(server.ask(), 503)
    with serving(folder) as server, ThreadPoolExecutor(1) as pool:
        whole = pool.submit(server.ask)
        assert eventually(lambda: server.front.under_way == 1 or whole.done())
        asyncio.run(finish(server.front, grace=20.0))
        assert whole.result().status_code == 200
