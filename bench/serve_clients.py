"""Clients of a server under load: who asks as one should, who reads slowly, who leaves, and who sends what is no request.

In: an address, and what the engine says alone to each question. Out: how often each kind of client ended in which way:

    right              the engine's own answer, letter for letter
    tie                it parts from that where the engine's own top two log-probabilities lie within 1e-4
    crossed            another client's answer
    wrong              none of these
    refused            a status that fits, and an error in OpenAI's form
    refused unclearly  anything else that is no answer
    lost               neither an answer nor an error: the connection broke, or a stream ended without [DONE]
    left               the client itself went away, as it was meant to
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from sapwood.records import Completion

TIE = 1e-4
"""Nats: log-probabilities nearer than this are equal, for sums in another order round them apart."""
KEY = "0123456789-load-0123456789"
PAUSE = 0.05
"""Seconds that a slow reader takes over each piece."""
ANSWERED = ("whole", "streamed", "slow reader")
"""Kinds that get their answer; the slow reader's is streamed."""
LEAVING = ("leaves in the middle", "leaves before an answer", "breaks off its request")
REFUSED = {"malformed": (400,), "oversized prompt": (400,), "oversized body": (413,)}
"""Kinds that get an error, with the statuses that fit."""
KINDS = (*ANSWERED, *ANSWERED, *LEAVING, *REFUSED)
"""Client i is of kind i, over and over: half of them get an answer."""
MALFORMED = (
    b'{"model": ',
    b"[1, 2]",
    b'{"model": "MODEL", "messages": "hi"}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "temprature": 1}',
    b'{"model": "MODEL", "messages": [{"role": "wizard", "content": "hi"}]}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "max_tokens": "many"}',
)


@dataclass(frozen=True)
class Expected:
    """What the engine answers alone."""

    text: str
    unsure: tuple[int, ...]
    """Letters before each token whose runner-up is as likely."""

    def judge(self, said: str, others: Mapping[str, int]) -> str:
        """What an answer is; `others` are all expected texts."""
        if said == self.text:
            return "right"
        if said in others:
            return "crossed"
        agreed = next(
            (place for place, pair in enumerate(zip(said, self.text, strict=False)) if pair[0] != pair[1]), min(len(said), len(self.text))
        )
        return "tie" if any(place <= agreed for place in self.unsure) else "wrong"


def expected_of(completion: Completion, decode: Any) -> Expected:
    """Of an answer that was sampled with `top_logprobs` 2."""
    close = [place for place, (first, second) in enumerate(completion.top_logprobs) if first[1] - second[1] < TIE]
    return Expected(completion.text, tuple(len(decode(completion.ids[:place])) for place in close))


@dataclass(frozen=True)
class Crowd:
    """What all clients of one round share."""

    url: str
    model: str
    questions: Sequence[str]
    expected: Sequence[Expected]
    tokens: int
    context: int
    max_body: int

    async def round(self, first: int = 0) -> Counter[tuple[str, str]]:
        """Everybody at once; how many clients of each kind ended in each way. Client i is of kind `first` + i."""
        limits = httpx2.Limits(max_connections=len(self.questions), max_keepalive_connections=0)
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        others = {expected.text: place for place, expected in enumerate(self.expected)}
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=None, limits=limits) as client:

            async def one(number: int) -> tuple[str, str]:
                kind = KINDS[(first + number) % len(KINDS)]
                try:
                    return kind, await self._one(client, kind, number, others)
                except (httpx2.TransportError, OSError):
                    return kind, "lost"

            return Counter(await asyncio.gather(*map(one, range(len(self.questions)))))

    async def _one(self, client: httpx2.AsyncClient, kind: str, number: int, others: Mapping[str, int]) -> str:
        if kind in REFUSED:
            content = next(self._refusable(kind, number))
            return refused(await client.post(self.url + "/chat/completions", content=content), REFUSED[kind])
        if kind == "breaks off its request":
            return await self._breaks_off(number)
        body = self.body(number, stream=kind != "whole")
        if kind == "leaves before an answer":
            try:
                response = await client.post(self.url + "/chat/completions", json={**body, "stream": False}, timeout=PAUSE)
                return f"status {response.status_code} before it could leave"
            except httpx2.TimeoutException:
                return "left"
        async with client.stream("POST", self.url + "/chat/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return refused(response, (429, 503))
            if kind == "whole":
                said = json.loads(await response.aread())["choices"][0]["message"]["content"]
                return self.expected[number].judge(said, others)
            found = ""
            async for piece in pieces(response):
                if piece is None:
                    return self.expected[number].judge(found, others)
                found += piece
                if kind == "leaves in the middle" and found:
                    return "left"
                if kind == "slow reader":
                    await asyncio.sleep(PAUSE)
        return "lost"

    def body(self, number: int, *, stream: bool) -> dict[str, Any]:
        """The request of a client."""
        asked = [{"role": "user", "content": self.questions[number]}]
        return {"model": self.model, "messages": asked, "max_tokens": self.tokens, "temperature": 0, "stream": stream}

    def _refusable(self, kind: str, number: int) -> Iterator[bytes]:
        """A body that is to be refused."""
        if kind == "malformed":
            yield MALFORMED[number // len(KINDS) % len(MALFORMED)].replace(b"MODEL", self.model.encode())
        elif kind == "oversized prompt":
            body = self.body(number, stream=False)
            yield json.dumps({**body, "messages": [{"role": "user", "content": "word " * (2 * self.context)}]}).encode()
        else:
            yield b'"' + b"x" * (self.max_body + 1) + b'"'

    async def _breaks_off(self, number: int) -> str:
        """Half of a request, and then the line is cut."""
        url = httpx2.URL(self.url)
        body = json.dumps(self.body(number, stream=True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url.host}\r\nauthorization: Bearer {KEY}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(head.encode() + body[: len(body) // 2])
        await writer.drain()
        await asyncio.sleep(PAUSE)
        writer.transport.abort()
        return "left"


def refused(response: httpx2.Response, fitting: Sequence[int]) -> str:
    """Whether an answer that is none says so as it should."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = None
    return "refused" if response.status_code in fitting and isinstance(message, str) and message else "refused unclearly"


async def pieces(response: httpx2.Response) -> Any:
    """What a stream says, piece by piece; None at its [DONE], and nothing behind an error."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            yield None
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return
            yield from_chunk(chunk)


def from_chunk(chunk: Mapping[str, Any]) -> str:
    """The letters that a chunk brings."""
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
