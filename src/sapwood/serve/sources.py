"""Where an answer comes from, the engine or a remote server: both give it whole or in chunks, and count its tokens.

In: a request that was understood. Out: the JSON of OpenAI's protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from sapwood.serve.answers import Form
from sapwood.serve.experiment import Routed
from sapwood.serve.remote_arms import RemoteArms
from sapwood.serve.under_way import UnderWay


class Source(Protocol):
    """One answer."""

    async def whole(self) -> dict[str, Any]:
        """The response. Raises `RefusalError`."""

    def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The response piece by piece. Raises `RefusalError`, whatever has been said by then."""

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens read and written, once it has been given."""


class EngineSource:
    """The engine of this process."""

    def __init__(self, work: UnderWay, form: Form) -> None:
        self._work, self._form = work, form

    async def whole(self) -> dict[str, Any]:
        """See `Source`."""
        return self._form.whole(self._work.asked, await self._work.whole())

    def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """See `Source`."""
        return self._work.chunks(self._form)

    @property
    def tokens(self) -> tuple[int, int]:
        """See `Source`."""
        work = self._work
        written = sum(len(completion.ids) for completion in work.completions if completion is not None)
        return sum(len(prompt.ids) for prompt in work.asked.prompts), written


class RemoteSource:
    """A remote server. Its tokens are those that it counts; a stream that carries no usage has none."""

    def __init__(self, arms: RemoteArms, routed: Routed, of_chat: bool) -> None:
        self._arms, self._routed, self._of_chat = arms, routed, of_chat
        self.tokens = (0, 0)

    async def whole(self) -> dict[str, Any]:
        """See `Source`."""
        return self._counted(await self._arms.whole(self._routed, self._of_chat))

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """See `Source`."""
        async for chunk in self._arms.events(self._routed, self._of_chat):
            yield self._counted(chunk)

    def _counted(self, content: dict[str, Any]) -> dict[str, Any]:
        if isinstance(usage := content.get("usage"), dict):
            read, written = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
            self.tokens = (read if isinstance(read, int) else 0, written if isinstance(written, int) else 0)
        return content
