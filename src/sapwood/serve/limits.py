"""Who may ask, and how much: tokens for access, sizes, rates, and how many requests are under way."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass

from sapwood.errors import ConfigError
from sapwood.remote.pacing import Pace


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """What one server takes."""

    max_requests: int = 256
    """Requests under way at a time; more are answered with status 503, and come back."""
    max_new_tokens: int = 4096
    """Longest answer that may be asked for, and what is taken where nothing is said (as far as the context goes)."""
    max_samples: int = 16
    """Largest `n`."""
    max_body: int = 8 * 2**20
    """Bytes of a request."""
    requests_a_minute: int = 0
    """Requests a minute for each token; 0 is no limit. More are answered with status 429."""

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_new_tokens", "max_samples", "max_body"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.requests_a_minute < 0:
            raise ConfigError(f"requests_a_minute is {self.requests_a_minute}; give 0 (no limit) or more.")


class Access:
    """The tokens that open a server, each with a pace of its own. No tokens: open to all who reach it."""

    def __init__(self, tokens: tuple[str, ...], requests_a_minute: int = 0) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._paces = [Pace(requests_a_minute) for _ in tokens or ("",)]

    @property
    def open(self) -> bool:
        """Whether nobody is asked for a token."""
        return not self._tokens

    def pace_of(self, authorization: str | None) -> Pace | None:
        """The pace of whoever sends this header; None for a stranger. Takes as long for a wrong token as for a right one."""
        if not self._tokens:
            return self._paces[0]
        scheme, _, given = (authorization or "").partition(" ")
        right = [hmac.compare_digest(given.strip().encode(), token) for token in self._tokens]
        return self._paces[right.index(True)] if scheme.lower() == "bearer" and any(right) else None

    @staticmethod
    def wait(pace: Pace) -> float:
        """Seconds until this caller may ask again; 0 is now, and then it counts."""
        return pace.wait(time.monotonic(), 0)
