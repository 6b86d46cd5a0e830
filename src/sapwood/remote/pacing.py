"""How fast requests may go out: so many requests and tokens a minute, and a pause for all when the server asks for one.

In: what a request is expected to take. Out: the moment when it may be sent. Left out on purpose: limits that several processes
share; each keeps to its own, and the server's 429 does the rest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

MINUTE = 60.0


class Pace:
    """Requests and tokens of the last minute. 0 is no limit. Belongs to one event loop."""

    def __init__(self, requests: int = 0, tokens: int = 0) -> None:
        self._requests, self._tokens = requests or math.inf, tokens or math.inf
        self._sent: deque[tuple[float, float]] = deque()
        """(when, tokens) of what went out within the last minute."""
        self._spent = 0.0
        self._paused_until = -math.inf

    def wait(self, now: float, tokens: float) -> float:
        """Seconds until a request of so many tokens may go out; 0 is now, and then it counts as sent."""
        while self._sent and self._sent[0][0] <= now - MINUTE:
            self._spent -= self._sent.popleft()[1]
        tokens = min(tokens, self._tokens)  # one that is larger than the limit goes out alone
        free = self._paused_until - now
        count, spent = len(self._sent), self._spent
        for sent, cost in self._sent:
            if count < self._requests and spent + tokens <= self._tokens:
                break
            free = max(free, sent + MINUTE - now)
            count, spent = count - 1, spent - cost
        if free > 0:
            return free
        self._sent.append((now, tokens))
        self._spent += tokens
        return 0.0

    def pause(self, now: float, seconds: float) -> None:
        """Nobody sends for so long: the server has asked for it."""
        self._paused_until = max(self._paused_until, now + seconds)

    async def enter(self, tokens: float) -> None:
        """Come back when the request may go out."""
        while (seconds := self.wait(time.monotonic(), tokens)) > 0:
            await asyncio.sleep(seconds)
