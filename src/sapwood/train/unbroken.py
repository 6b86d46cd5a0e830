"""Signals wait while an update is half done: a run that is stopped ends between two steps, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def unbroken() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block has ended, then deliver them to whoever handled them before."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield
        return
    waiting: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        waiting.append(number)

    handlers = {number: signal.signal(number, hold) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for held in dict.fromkeys(waiting):
            signal.raise_signal(held)
