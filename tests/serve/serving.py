"""A server on loopback over a tiny model, in a thread of the tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from sapwood.ab.records import Book
from sapwood.chat import Chat
from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.model.several import add_adapter
from sapwood.serve.app import Front, make_app
from sapwood.serve.asking import Served
from sapwood.serve.experiment import Experiment
from sapwood.serve.limits import Access, ServeLimits
from sapwood.serve.traffic import Traffic
from sapwood.serve.worker import Worker

TOKEN = "let-me-in"


@dataclass
class Serving:
    """A running server and what it serves."""

    url: str
    engine: Engine
    chat: Chat
    worker: Worker
    front: Front

    def post(self, path: str, body: Any, token: str | None = TOKEN, **more: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx2.post(self.url + path, json=body, headers=headers | more.pop("headers", {}), trust_env=False, timeout=60, **more)

    def ask(self, text: str = "the colour of the sky", **more: Any) -> httpx2.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **more}
        return self.post("/chat/completions", body)


@contextmanager
def serving(
    folder: Path,
    limits: ServeLimits | None = None,
    models: dict[str, str | None] | None = None,
    arguments: dict[str, Any] | None = None,
    adapters: Sequence[Path] = (),
    tools_in_system: bool = False,
    processor: Any = None,
    book: Book | None = None,
    traffic: Traffic | None = None,
    **knobs: Any,
) -> Iterator[Serving]:
    """Serve the model of a folder until the block ends, with adapters that are called like their folders."""
    limits = limits or ServeLimits()
    chat = Chat.load(folder)
    if processor is not None:
        chat = chat.with_media(processor)
    if tools_in_system:
        chat = chat.with_tools_in_system()
    model = load_model(folder, "fp32")
    for adapter in adapters:
        model = add_adapter(model, adapter, adapter.name)
    engine = Engine(model, chat, **knobs)
    worker = Worker(engine)
    found: list[tuple[Front, int]] = []
    up = threading.Event()
    stop = threading.Event()

    async def main() -> None:
        served = Served(models or {"tiny": None}, chat, limits, arguments or {})
        experiment = Experiment(book, served) if book is not None else None
        front = Front(worker, served, Access((TOKEN, "second"), limits.requests_a_minute), experiment, traffic)
        config = uvicorn.Config(make_app(front), host="127.0.0.1", port=0, log_level="error", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        task = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        found.append((front, server.servers[0].sockets[0].getsockname()[1]))
        up.set()
        while not stop.is_set():
            await asyncio.sleep(0.01)
        server.should_exit = server.force_exit = True
        await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert up.wait(20)
    front, port = found[0]
    try:
        yield Serving(f"http://127.0.0.1:{port}/v1", engine, chat, worker, front)
    finally:
        worker.close()
        stop.set()
        thread.join(20)


def with_limits(**knobs: Any) -> ServeLimits:
    """Limits of a test."""
    return replace(ServeLimits(), **knobs)
