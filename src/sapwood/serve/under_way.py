"""One request under way: its jobs at the worker, and their events on the event loop.

In: what was asked. Out: all completions, or an iterator of chunks. Whoever leaves early cancels what nobody waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from sapwood.records import Completion, Ended
from sapwood.serve.answers import ChatDeltas, Form, TextDeltas, finish_reason, usage
from sapwood.serve.asking import Asked
from sapwood.serve.fields import RefusalError
from sapwood.serve.worker import Broken, Event, Job, Over, Ready, Token, Worker


class UnderWay:
    """The jobs of one request. Made and used on the event loop."""

    def __init__(self, asked: Asked, worker: Worker) -> None:
        self.asked, self._worker = asked, worker
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._jobs = [
            Job(prompt, asked.params, asked.samples, partial(self._tell, place), asked.adapter, asked.stream)
            for place, prompt in enumerate(asked.prompts)
        ]
        self._left = len(self._jobs)
        self.completions: list[Completion | None] = [None] * (len(self._jobs) * asked.samples)

    def begin(self) -> None:
        """Hand the jobs over."""
        for job in self._jobs:
            self._worker.submit(job)

    def leave(self) -> None:
        """Cancel what is not answered."""
        if self._left:
            for job in self._jobs:
                self._worker.cancel(job)

    async def whole(self) -> list[Completion]:
        """All answers. Raises `RefusalError` for one that failed."""
        while self._left:
            await self._next()
        return [completion for completion in self.completions if completion is not None]

    async def chunks(self, form: Form) -> AsyncIterator[dict[str, Any]]:
        """The answers piece by piece. Raises `RefusalError` for one that failed, whatever has been said by then."""
        asked = self.asked
        places = [(prompt, place) for prompt in range(len(self._jobs)) for place in range(asked.samples)]
        deltas = [
            ChatDeltas(form.chat, asked.prompts[prompt], asked.params) if form.of_chat else TextDeltas(form.chat, asked.params)
            for prompt, _ in places
        ]
        first = {"prompt_token_ids": list(asked.prompts[0].ids)} if asked.token_ids and len(asked.prompts) == 1 else {}
        for place, (prompt, _) in enumerate(places):
            if form.of_chat:
                yield form.chunk(place, {"role": "assistant", "content": ""}) | first
            elif asked.echo or first:
                yield form.chunk(place, {"content": asked.prompts[prompt].text if asked.echo else ""}) | first
            first = {}
        while self._left:
            place, event = await self._next()
            if isinstance(event, Token) and not asked.only_echo:
                logprobs, ids = None, [event.token] if asked.token_ids else None
                if asked.logprobs is not None:
                    logprobs = form.logprobs([event.token], [event.logprob], [event.alternatives])
                said = deltas[place].push(event.token) or ([{"content": ""}] if logprobs or ids else [])
                for number, delta in enumerate(said):
                    yield form.chunk(place, delta, logprobs=logprobs if number == 0 else None, token_ids=ids if number == 0 else None)
            elif isinstance(event, Ready):
                for delta in [] if asked.only_echo else deltas[place].finish(event.completion):
                    yield form.chunk(place, delta)
                yield form.chunk(place, {}, finish_reason(event.completion))
        if asked.include_usage:
            yield {**form.head(True), "choices": [], "usage": usage(asked, await self.whole())}

    def _tell(self, prompt: int, event: Event) -> None:
        """Called in the worker's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, (prompt, event))

    async def _next(self) -> tuple[int, Event]:
        """The next event, with the place of its choice."""
        prompt, event = await self._events.get()
        place = prompt * self.asked.samples + (event.sample if isinstance(event, Token | Ready) else 0)
        if isinstance(event, Broken):
            self._left -= 1
            raise RefusalError(event.reason, status=400 if event.asked else 503, wait=0 if event.asked else 5)
        if isinstance(event, Over):
            self._left -= 1
        if isinstance(event, Ready):
            self.completions[place] = event.completion
            if event.completion.ended is Ended.ERROR:
                raise RefusalError(event.completion.error or "The answer failed.", status=500)
        return place, event
