"""One request until it is answered or given up: retries with jitter, time-outs, and what each failure means.

    sent again          no connection, a connection that broke, no whole answer in time, 408, 409, 425, 429, 5xx, 529,
                        a 200 that holds no whole JSON or an error of that kind
    given up at once    any other status: this request fails (`UnansweredError`), and is recorded
    ends everything     401, 402, 404 and a server that cannot be reached (`RemoteError`): the next request would fail alike

Waits double from `backoff` seconds with half of each drawn at random, so that many clients do not come back together; a server's
Retry-After is kept to by all requests. Keys are taken out of every text that a server sends back.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
import orjson

from sapwood.errors import RemoteError
from sapwood.remote.pacing import Pace

T = TypeVar("T")

LARGEST = 64 * 2**20
"""Bytes of an answer that are read."""
LONGEST_WAIT = 120.0
"""Seconds that a server may ask to be left alone before a request is given up."""
_AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
_FATAL = {
    401: "The key is wrong or missing: name the environment variable that holds it.",
    402: "The account has no money left there.",
    404: "Nothing is there: check the address (it usually ends in /v1) and the name of the model.",
}
_FULL = re.compile(r"context[ _](length|size|window|holds)|maximum model length", re.IGNORECASE)
"""OpenAI's and vLLM's words, llama.cpp's, and our own server's."""
_TITLE = re.compile(r"<title[^>]*>\s*(.*?)\s*</title>", re.DOTALL | re.IGNORECASE)


class UnansweredError(Exception):
    """This request has no answer; the text says why. `status` is 0 where there was no response."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status

    @property
    def outgrown(self) -> bool:
        """Whether a server refused it because prompt and answer do not fit its context: the servers share no code for that, but words."""
        return self.status in (400, 413, 422) and _FULL.search(str(self)) is not None


class _AgainError(Exception):
    """Worth another try, after `wait` seconds where the server asked for that."""

    def __init__(self, reason: str, wait: float = 0.0, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.unreachable = reason, wait, unreachable


@dataclass(frozen=True)
class Line:
    """A connection to one server: what every request needs."""

    client: httpx2.AsyncClient
    url: str
    headers: Mapping[str, str]
    key: str
    pace: Pace
    timeout: float
    tries: int
    backoff: float

    async def ask(self, body: Mapping[str, Any], expected_tokens: float, read: Callable[[Any], Any]) -> Any:
        """What `read` makes of the response's JSON; it raises `ValueError` for what is none.

        Raises `UnansweredError` or `RemoteError`.
        """
        return await self._persist(lambda: self._once(body, read), expected_tokens)

    async def follow(self, body: Mapping[str, Any], expected_tokens: float, read: Callable[[Any], T], tell: Callable[[T], None]) -> None:
        """Tell what `read` makes of each chunk of a streamed answer. What has begun is not asked again: it fails where it breaks.

        Raises as `ask` does; `read` raises `ValueError` for a chunk that is none. The time-out holds between two chunks.
        """
        await self._persist(lambda: self._stream(body, read, tell), expected_tokens)

    async def _persist(self, once: Callable[[], Awaitable[T]], expected_tokens: float) -> T:
        for attempt in range(1, self.tries + 1):
            await self.pace.enter(expected_tokens)
            try:
                return await once()
            except _AgainError as again:
                if attempt == self.tries or again.wait > LONGEST_WAIT:
                    tried = "once" if attempt == 1 else f"{attempt} times"
                    asked = f" It asks to wait {again.wait:.0f} s." if again.wait > LONGEST_WAIT else ""
                    if again.unreachable:
                        raise RemoteError(
                            f"{self.url}: {again.reason}, tried {tried}. Check that the server runs and the address is right."
                        ) from None
                    raise UnansweredError(f"{self.url}: {again.reason}, tried {tried}.{asked}") from None
                if again.wait:
                    self.pace.pause(time.monotonic(), again.wait)
                await asyncio.sleep(_jittered(self.backoff * 2 ** (attempt - 1)))
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, body: Mapping[str, Any], read: Callable[[Any], Any]) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                status, headers, data = await self._exchange(body)
        except TimeoutError:
            raise _AgainError(f"no whole answer within {self.timeout:g} s") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise _AgainError(f"no connection ({self._clean(str(error)) or type(error).__name__})", unreachable=True) from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _AgainError(f"the connection broke ({self._clean(str(error)) or type(error).__name__})") from None
        if status != 200:
            self._refuse(status, headers, data)
        try:
            response = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise _AgainError(f"answered 200 with {_what(data)}, where JSON is expected: {self._clean(_excerpt(data))}") from None
        if isinstance(response, dict) and response.get("error"):
            found = response["error"]
            code = found.get("code") if isinstance(found, dict) else None
            self._refuse(code if isinstance(code, int) and 400 <= code < 600 else 500, headers, data)
        try:
            return read(response)
        except ValueError as error:
            raise _AgainError(f"answered 200, but not as the protocol says: {error}") from None

    async def _stream(self, body: Mapping[str, Any], read: Callable[[Any], T], tell: Callable[[T], None]) -> None:
        began = unreachable = False
        try:
            async with asyncio.timeout(self.timeout) as limit, self.client.stream("POST", self.url, **self._content(body)) as response:
                if response.status_code != 200 or "event-stream" not in response.headers.get("content-type", ""):
                    self._refuse_stream(response.status_code, response.headers, await response.aread())
                async for line in response.aiter_lines():
                    limit.reschedule(asyncio.get_running_loop().time() + self.timeout)
                    if not line.startswith("data:"):
                        continue
                    if line[5:].strip() == "[DONE]":
                        return
                    found = self._chunk(line[5:], read)
                    began = True
                    tell(found)
            reason = "the stream ended without saying so"
        except TimeoutError:
            reason = f"nothing more came within {self.timeout:g} s"
        except httpx2.TransportError as error:
            unreachable = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
            reason = f"the connection broke ({self._clean(str(error)) or type(error).__name__})"
        except _AgainError as again:
            if not began:
                raise
            reason = again.reason
        if began:
            raise UnansweredError(f"{self.url}: {reason}, in the middle of the answer.")
        raise _AgainError(reason, unreachable=unreachable)

    def _chunk(self, text: str, read: Callable[[Any], T]) -> T:
        try:
            chunk = orjson.loads(text)
            if isinstance(chunk, dict) and chunk.get("error"):
                raise _AgainError(f"the stream broke off with an error: {self._clean(_excerpt(text.encode()))}")
            return read(chunk)
        except ValueError as error:
            raise _AgainError(f"the stream is not what the protocol says: {error}") from None

    def _refuse_stream(self, status: int, headers: httpx2.Headers, data: bytes) -> None:
        """Raise what a response means that is no stream."""
        if status != 200:
            self._refuse(status, headers, data)
        raise _AgainError(f"answered 200 with {_what(data)}, where a stream is expected: {self._clean(_excerpt(data))}")

    def _content(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"content": orjson.dumps(body), "headers": self.headers}

    async def _exchange(self, body: Mapping[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        data = bytearray()
        async with self.client.stream("POST", self.url, **self._content(body)) as response:
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > LARGEST:
                    raise UnansweredError(f"{self.url}: the answer is larger than {LARGEST:,} bytes.")
        return response.status_code, response.headers, bytes(data)

    def _refuse(self, status: int, headers: httpx2.Headers, data: bytes) -> None:
        """Raise what a status means."""
        said = self._clean(_excerpt(data))
        reason = f"status {status}: {said}" if said else f"status {status}"
        if 300 <= status < 400:
            raise RemoteError(f"{self.url}: it sends elsewhere, to {headers.get('location', '?')!r}. Name that address itself.")
        if status in _FATAL:
            raise RemoteError(f"{self.url}: {reason}. {_FATAL[status]}")
        if status in _AGAIN:
            raise _AgainError(reason, retry_after(headers.get("retry-after"), time.time()))
        raise UnansweredError(f"{self.url}: {reason}", status)

    def _clean(self, text: str) -> str:
        return text.replace(self.key, "(the key)") if self.key else text


def retry_after(value: str | None, now: float) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110 §10.2.3); 0 where it says nothing."""
    if value is None:
        return 0.0
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)  # never seeded: clients that start alike must part


def _what(data: bytes) -> str:
    if not data.strip():
        return "nothing"
    return "an HTML page" if data.lstrip()[:1] == b"<" else "something else"


def _excerpt(data: bytes) -> str:
    """The server's own words, shortened: the message of an error object, the title of a page, else the beginning."""
    text = data[:20_000].decode(errors="replace")
    if title := _TITLE.search(text):
        return title.group(1)[:200]
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return " ".join(text.split())[:200]
    while isinstance(found, dict) and (inner := next((found[key] for key in ("error", "message", "detail") if found.get(key)), None)):
        found = inner
    return found[:500] if isinstance(found, str) else orjson.dumps(found).decode()[:500]
