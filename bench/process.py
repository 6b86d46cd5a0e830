"""A contestant from the outside: a child process that is asked, timed by itself, and watched for memory from here.

In: a command, its environment. Out: `Answer`s. The clock of a piece of work runs inside the contestant, so that starting
Python and importing libraries is counted only where a workload wants it. Left out on purpose: time limits (Ctrl-C ends the
contestants too) and more than one request at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from sapwood.errors import SapwoodError

WATCH_SECONDS = 0.05
"""Between two looks at a contestant's memory."""


@dataclass(frozen=True)
class Answer:
    """What a contestant replied, and what it took meanwhile."""

    reply: Mapping[str, Any]
    seconds: float
    """From the request to the reply, seen from outside."""
    peak_bytes: int
    """Largest sum of the resident memory of the process and its children, if it was watched, else 0; pages that several of them
    share count in each."""


class Contestant:
    """One child process. A context manager: it is ended, with its children, on the way out."""

    def __init__(
        self, name: str, command: Sequence[str | Path], *, folder: Path, environment: Mapping[str, str | None] | None = None
    ) -> None:
        """`environment` is added to this process's own; what is None there is taken out of it."""
        self.name, self._command, self._folder = name, [str(word) for word in command], folder
        whole = {**os.environ, **(environment or {})}
        self._environment = {key: value for key, value in whole.items() if value is not None}
        self._process: subprocess.Popen[str] | None = None
        self.versions: Mapping[str, str] = {}
        """What the contestant says it runs on."""
        self.start_seconds = 0.0
        """From starting the process until it was ready: Python and imports."""

    def __enter__(self) -> Contestant:
        begin = time.perf_counter()
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                encoding="utf-8",
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise SapwoodError(
                f"{self.name}: could not be started ({self._command[0]}: {error.strerror}). Check that program, and try again."
            ) from None
        try:
            self.versions = self._line()["ready"]
        except BaseException:
            self._end()
            raise
        self.start_seconds = time.perf_counter() - begin
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def ask(self, task: str, *, watch: bool = False, **request: Any) -> Answer:
        """Send one request and wait for its reply. Raises `SapwoodError` with what the contestant said where it fails.

        `watch` looks at its memory meanwhile, which takes some percent of a core: not where seconds count.
        """
        assert self._process is not None, "ask inside `with`"
        assert self._process.stdin is not None
        with _Watch(self._process.pid) if watch else contextlib.nullcontext() as watched:
            begin = time.perf_counter()
            with contextlib.suppress(BrokenPipeError):  # it has ended: reading says so, with its last words
                self._process.stdin.write(json.dumps({"task": task, **request}) + "\n")
                self._process.stdin.flush()
            content = self._line()
            seconds = time.perf_counter() - begin
        if "error" in content:
            raise SapwoodError(f"{self.name} failed at `{task}`. Its own words:\n{content['error'].rstrip()}")
        return Answer(content["reply"], seconds, watched.peak_bytes if watched else 0)

    def resident_bytes(self) -> int:
        """Resident memory of the process and its children now."""
        assert self._process is not None, "ask inside `with`"
        return _resident(psutil.Process(self._process.pid))

    def _line(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            words = self._log.read()[-2000:].decode(errors="replace").strip()
            how = f"was ended by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
            raise SapwoodError(f"{self.name} {how} without a reply. Its last words:\n{words or '(none)'}")
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            raise SapwoodError(f"{self.name} replied with something that is no JSON: {line[:200]!r}") from None
        assert isinstance(content, dict)
        return content

    def _end(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)  # the end of its input is its sign to leave
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and whatever children it left
        self._process.wait()
        self._log.close()
        self._process = None


class _Watch:
    """Looks at a process and its children now and then; the largest sum of resident bytes seen."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, _resident(self._process))
            if self._over.wait(WATCH_SECONDS):
                return


def _resident(process: psutil.Process) -> int:
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
    return total
