"""From an application to a server that listens, and ends well: who is being answered is answered, up to a deadline.

In: an address, a `Front`, and a grace period. Out: nothing; returns when the server has stopped, by SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvicorn

from sapwood.errors import ConfigError
from sapwood.serve.app import Front, make_app
from sapwood.serve.worker import Worker

POLL = 0.05
"""Seconds between two looks at whether a stop was asked for."""


def run_server(
    make_front: Callable[[Worker], Front], worker: Worker, *, host: str, port: int, grace: float, ready: Callable[[int], None]
) -> None:
    """Serve until a signal comes. `ready` is told the port; `grace` are the seconds that answers under way may still take.

    Raises `ConfigError` where the address cannot be taken.
    """
    asyncio.run(_serve(make_front, worker, host, port, grace, ready))


async def _serve(
    make_front: Callable[[Worker], Front], worker: Worker, host: str, port: int, grace: float, ready: Callable[[int], None]
) -> None:
    front = make_front(worker)
    config = uvicorn.Config(
        make_app(front), host=host, port=port, log_level="warning", access_log=False, server_header=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not (server.started or serving.done()):
        await asyncio.sleep(POLL)
    if server.started:
        ready(server.servers[0].sockets[0].getsockname()[1])
        await _stop_when_asked(server, serving, front, worker, grace)
    try:
        await serving
    except SystemExit:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: another program has that port, or the address is not this machine's."
        ) from None


async def _stop_when_asked(server: uvicorn.Server, serving: asyncio.Future[None], front: Front, worker: Worker, grace: float) -> None:
    """Once a stop is asked for, no request begins; those under way get `grace` seconds, and then an error that says so."""
    while not (server.should_exit or serving.done()):
        await asyncio.sleep(POLL)
    front.stopping = True
    deadline = asyncio.get_running_loop().time() + grace
    while front.under_way and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(POLL)
    await asyncio.to_thread(worker.close)
