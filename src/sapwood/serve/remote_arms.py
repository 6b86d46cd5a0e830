"""Arms that a remote server answers: the request goes there, its answer comes back under our name and id.

In: `Routed` requests whose arm has a `url`. Out: responses of the same form as the engine's, whole or streamed. Who asked stays here: of
what names a person (`user`, `metadata`, …) nothing is sent on. Nothing is asked twice: a client that wants another try makes it, in the
same arm. Left out on purpose: a change to the control where the server fails, which would hide the very thing that is measured.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import orjson

from sapwood.ab.plan import Arm, Plan
from sapwood.remote import Remote, RemoteSampler
from sapwood.remote.sending import LARGEST
from sapwood.serve.experiment import Routed
from sapwood.serve.fields import RefusalError

_NAMES_PEOPLE = ("user", "safety_identifier", "metadata", "prompt_cache_key")
TIMEOUT = 120.0
"""Seconds that a remote server may take until it goes on with its answer."""


class RemoteArms:
    """The remote servers of a plan. Belongs to the event loop."""

    def __init__(self, plan: Plan) -> None:
        """Raises `ConfigError` for an address that is none, and for a key that is not in the environment."""
        self._plan = plan
        self._samplers = {arm.name: RemoteSampler(Remote(url=arm.url, model=str(arm.model), key=arm.key)) for arm in plan.arms if arm.url}
        self._clients: dict[str, httpx2.AsyncClient] = {}

    async def whole(self, routed: Routed, of_chat: bool) -> dict[str, Any]:
        """The answer. Raises `RefusalError`."""
        with _refusals():
            async with self._stream(routed, of_chat) as response:
                data = await _read(response)
        return self._ours(_object(data), routed)

    async def events(self, routed: Routed, of_chat: bool) -> AsyncIterator[dict[str, Any]]:
        """The answer's chunks. Raises `RefusalError`, whatever has been said by then."""
        with _refusals():
            async with self._stream(routed, of_chat) as response:
                if response.status_code != 200:
                    await _read(response)
                async for line in response.aiter_lines():
                    kind, _, data = line.partition(":")
                    if kind == "data" and data.strip() == "[DONE]":
                        return
                    if kind == "data":
                        yield self._ours(_object(data.encode()), routed)
        raise RefusalError("The answer broke off.", status=502)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    def _stream(self, routed: Routed, of_chat: bool) -> Any:
        remote = self._samplers[routed.arm.name]
        body = {name: value for name, value in routed.body.items() if name not in _NAMES_PEOPLE}
        url = remote.remote.address("chat/completions" if of_chat else "completions")
        return self._client(routed.arm, remote).stream("POST", url, content=orjson.dumps(body), headers=remote.headers())

    def _client(self, arm: Arm, remote: RemoteSampler) -> httpx2.AsyncClient:
        if arm.name not in self._clients:
            self._clients[arm.name] = httpx2.AsyncClient(timeout=TIMEOUT, trust_env=not remote.remote.loopback)
        return self._clients[arm.name]

    def _ours(self, content: dict[str, Any], routed: Routed) -> dict[str, Any]:
        """Nothing of an answer says where it comes from."""
        if "error" in content:
            raise RefusalError("The answer broke off.", status=502)
        prefix = str(content.get("id", "")).partition("-")[0]
        kept = {name: value for name, value in content.items() if name not in ("system_fingerprint", "provider", "service_tier")}
        return {**kept, "id": f"{prefix if prefix in ('chatcmpl', 'cmpl') else 'chatcmpl'}-{routed.id}", "model": self._plan.model}


async def _read(response: httpx2.Response) -> bytes:
    """The whole body of an answer. Raises `RefusalError` for one that is none; of a faulty request the server's own words."""
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > LARGEST:
            raise RefusalError("The answer is too large.", status=502)
    if response.status_code == 200:
        return bytes(data)
    if response.status_code in (400, 413, 422):
        try:
            said = _object(bytes(data)).get("error")
        except RefusalError:
            said = None
        message = said.get("message") if isinstance(said, dict) else None
        raise RefusalError(str(message or "The request was refused."), status=response.status_code)
    raise RefusalError("The model does not answer just now. Ask again.", status=503, wait=5)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise RefusalError("The model's answer was none. Ask again.", status=502)
    return found


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (httpx2.TransportError, httpx2.DecodingError):
        raise RefusalError("The model does not answer just now. Ask again.", status=503, wait=5) from None
