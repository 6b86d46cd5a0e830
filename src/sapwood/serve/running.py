"""From an application to a server that listens, and ends well: who is being answered is answered, up to a deadline.

In: an address, a `Front`, and a grace period. Out: nothing; returns when the server has stopped, by SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from sapwood.serve.app import Front, make_app

POLL = 0.05
"""Seconds between two looks at whether a stop was asked for."""


def run_server(make_front: Callable[[], Front], listener: socket.socket, *, grace: float, ready: Callable[[], None]) -> None:
    """Serve until a signal comes. `ready` is called once it answers; `grace` are the seconds that answers under way may still take."""
    asyncio.run(_serve(make_front, listener, grace, ready))


async def _serve(make_front: Callable[[], Front], listener: socket.socket, grace: float, ready: Callable[[], None]) -> None:
    front = make_front()
    config = uvicorn.Config(make_app(front), log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(POLL)
    _stop_on_signals(server)
    ready()
    while not (server.should_exit or serving.done()):
        await asyncio.sleep(POLL)
    await finish(front, grace, lambda: server.force_exit)
    await serving


def _stop_on_signals(server: uvicorn.Server) -> None:
    """Signals end it without an exception in the middle of things; the second one does not wait."""

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    with suppress(NotImplementedError, RuntimeError):  # Windows, or a thread that gets no signals: uvicorn's own way holds
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)


async def finish(front: Front, grace: float, hurried: Callable[[], bool] = lambda: False) -> None:
    """No request begins any more; those under way get `grace` seconds, and then an error that says so."""
    front.stopping = True
    deadline = asyncio.get_running_loop().time() + grace
    while front.under_way and not hurried() and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(POLL)
    await asyncio.to_thread(front.worker.close)
