"""The thread that owns the engine: jobs in from any thread, their tokens and completions out as they come.

A job is one request: a prompt, n samples of it. Its `tell` is called in this thread with everything that happens to it, the last
event being `Over` or `Broken`, exactly once. Nothing is lost: a job that comes when the worker has stopped is told so.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from sapwood.errors import SapwoodError
from sapwood.generate import Engine
from sapwood.generate.answer import Answer
from sapwood.generate.session import Session
from sapwood.records import Completion, Prompt, SamplingParams
from sapwood.records.sampling import Alternatives

logger = logging.getLogger(__name__)

STOPPED = "The server is stopping. Ask again when it is back."


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled token of one sample."""

    sample: int
    token: int
    logprob: float
    alternatives: Alternatives


@dataclass(frozen=True, slots=True)
class Ready:
    """A sample has ended."""

    sample: int
    completion: Completion


@dataclass(frozen=True, slots=True)
class Over:
    """All samples have ended."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The job has no answer. `asked` says whether the request was at fault."""

    reason: str
    asked: bool


Event = Token | Ready | Over | Broken


@dataclass(eq=False)
class Job:
    """One request under way."""

    prompt: Prompt
    params: SamplingParams
    samples: int
    tell: Callable[[Event], None]
    adapter: str | None = None
    streamed: bool = True
    """Whether `tell` hears of each token."""
    answers: list[Answer] = field(default_factory=list)
    left: int = 0
    """Samples that have not ended."""


Order = tuple[Literal["begin", "cancel"], Job]


class Worker:
    """Owns an engine until `close`. All methods may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._jobs: dict[Answer, tuple[Job, int]] = {}
        self._closed = False
        self._lock = threading.Lock()
        self.load = (0, 0)
        """Sequences that run, and that wait, after the last step."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job in the queue."""
        with self._lock:
            if not self._closed:
                self._inbox.put(("begin", job))
                return
        job.tell(Broken(STOPPED, asked=False))

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more: its sequences leave with the next step."""
        self._inbox.put(("cancel", job))

    def close(self) -> None:
        """Break what is under way with a word, and end the thread."""
        with self._lock:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        """A session for each busy stretch that fails is a new one; it opens with the first order, so that no failure repeats itself."""
        order: Order | None
        while (order := self._inbox.get()) is not None:
            try:
                with self._engine.open() as session:
                    while order is not None:
                        self._do(order, session)
                        order = self._step_until_asked(session)
                break
            except Exception as error:
                logger.exception("The engine failed.")
                self._break(f"The engine failed: {type(error).__name__}: {error}", order)
        self._break(STOPPED, None)

    def _step_until_asked(self, session: Session) -> Order | None:
        """Answer until there is an order."""
        while True:
            try:
                return self._inbox.get(block=session.idle)
            except queue.Empty:
                self._give(session)

    def _give(self, session: Session) -> None:
        """One step, and what it ended."""
        for answer in session.step():
            if answer not in self._jobs:  # it was refused when it came
                continue
            job, sample = self._jobs.pop(answer)
            job.left -= 1
            job.tell(Ready(sample, answer.completion()))
            if not job.left:
                job.tell(Over())
        self.load = session.load

    def _do(self, order: Order, session: Session) -> None:
        what, job = order
        if what == "cancel":
            for answer in job.answers:
                answer.cancel()
            return
        try:
            for sample in range(job.samples):
                on_token = partial(_tell_token, job, sample) if job.streamed else None
                answer = session.add(job.prompt, job.params, index=sample, adapter=job.adapter, on_token=on_token)
                if answer.error is not None:  # it can never be answered: asking again would not help
                    assert not job.answers, "what refuses one sample refuses the first"
                    job.tell(Broken(answer.error, asked=True))
                    return
                job.answers.append(answer)
                self._jobs[answer] = (job, sample)
                job.left += 1
        except SapwoodError as error:
            assert not job.answers, "what refuses one sample refuses the first"
            job.tell(Broken(str(error), asked=True))

    def _break(self, reason: str, order: Order | None) -> None:
        """Tell all who wait, those of the queue included, that there is no answer."""
        waiting = dict.fromkeys(job for job, _ in self._jobs.values())
        self._jobs.clear()
        while True:
            if order is not None and order[0] == "begin":
                waiting[order[1]] = None
            try:
                order = self._inbox.get_nowait()
            except queue.Empty:
                break
            if order is None:
                self._inbox.put(None)  # the end is not lost
                break
        for job in waiting:
            job.tell(Broken(reason, asked=False))


def _tell_token(job: Job, sample: int, token: int) -> None:
    answer = job.answers[sample]
    job.tell(Token(sample, token, answer.logprobs[-1], answer.top_logprobs[-1] if answer.top_logprobs else ()))
