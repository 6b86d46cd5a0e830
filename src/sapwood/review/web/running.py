"""From a `Review` to a server that listens until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from sapwood.review.web.app import make_app
from sapwood.review.web.asking import Review


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def run_review(review: Review, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; who is being answered is answered."""
    config = uvicorn.Config(
        make_app(review),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=10,
    )
    with suppress(KeyboardInterrupt):  # it is how a server ends
        _Server(config, ready).run(sockets=[listener])
