"""Start the confined child, feed it, watch it, and tell how it ended.

In: a program, its tests, `Limits`. Out: an `Outcome`. What the child prints is kept apart from its verdict, which comes over a pipe
of its own with a token that only the child's runner knows. Raises `ConfigError` where a barrier of the kernel is missing.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sapwood.errors import ConfigError

Ending = Literal["passed", "failed", "syntax", "exited", "refused", "timeout", "memory", "output", "files", "killed"]
"""How a program ended; only `passed` is a pass, and all others are its own doing."""

_HERE = Path(__file__).parent
_REASONS: dict[str, str] = {
    "exited": "it ended the process before its tests had run",
    "memory": "it wanted more memory than it may have",
}
_SIGNALS: dict[int, tuple[Ending, str]] = {
    signal.SIGXCPU: ("timeout", "it used up its processor time"),
    signal.SIGXFSZ: ("files", "it wrote a larger file than it may"),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """Of wall time; processor time is cut at the next whole second."""
    memory_mb: int = 512
    """Address space, Python itself (about 30 MB) included."""
    output_kb: int = 256
    """What it may print; past it the program is stopped."""
    scratch_mb: int = 16
    """What its folder may hold in all, which is deleted afterwards."""

    def __post_init__(self) -> None:
        for name, least in (("seconds", 0.1), ("memory_mb", 64), ("output_kb", 1), ("scratch_mb", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}; a program under test needs at least {least:g}.")


@dataclass(frozen=True)
class Outcome:
    """How a program and its tests ended."""

    ended: Ending
    detail: str = ""
    """What it raised, or what it was stopped for; empty where it passed."""
    output: str = ""
    """What it printed, out and error together, up to the limit."""
    seconds: float = 0.0
    """Of wall time, with the child's start."""

    @property
    def passed(self) -> bool:
        return self.ended == "passed"


def run_tests(program: str, limits: Limits | None = None, *, tests: str = "") -> Outcome:
    """Run `program`, then `tests` in the same namespace, in a child process that can reach nothing.

    Passed means that both ran to their end without an exception. Raises `ConfigError` where this machine cannot hold a program
    in: better no score than one that ran in the open.
    """
    held, outcome = run_confined(program, limits or Limits(), tests)
    if outcome is None:
        missing = [name for name in ("resources", "privileges", "files", "calls") if not held.get(name)]
        raise ConfigError(
            f"Code that a model wrote is not run here: this system does not hold it in (missing: {', '.join(missing) or 'all'}; "
            "`files` is Landlock of Linux 5.13, `calls` is seccomp, which cuts the network). Use a machine or a container with a newer "
            "Linux, or leave the scores that run code out."
        )
    return outcome


def run_confined(program: str, limits: Limits, tests: str = "", *, hook: bool = True) -> tuple[dict[str, bool], Outcome | None]:
    """What the kernel accepted, and the outcome; None for it where a barrier that is needed was refused and nothing was run.

    Without `hook` the second line, Python's own, is left out, so that a probe meets the kernel alone. Raises `ConfigError` where
    Python does not start inside.
    """
    if sys.platform != "linux":
        return {}, None
    token = secrets.token_hex(16)
    job = json.dumps({"token": token, "program": program, "tests": tests, "hook": hook}).encode()
    with tempfile.TemporaryDirectory(prefix="sapwood-code-", ignore_cleanup_errors=True) as scratch:
        reading, writing = os.pipe()
        try:
            process = _start(limits, scratch, writing)
        finally:
            os.close(writing)
        try:
            watched = _Watched(process, reading, job, limits, Path(scratch))
            stopped = watched.follow()
        finally:
            process.kill()
            process.wait()
            os.close(reading)
            for stream in (process.stdin, process.stdout):
                if stream is not None and not stream.closed:
                    stream.close()
    return watched.told(token, stopped)


def _start(limits: Limits, scratch: str, verdict: int) -> subprocess.Popen[bytes]:
    knobs = {
        "memory": limits.memory_mb << 20,
        "cpu": int(limits.seconds) + 2,
        "file": limits.scratch_mb << 20,
        "scratch": scratch,
    }
    python = [os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable), "-I", "-S", "-B", "-u"]
    command = [*python, str(_HERE / "confine.py"), json.dumps(knobs), str(verdict), *python, str(_HERE / "inside.py")]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(verdict,),
        cwd=scratch,
        env={"LANG": "C.UTF-8"},
        start_new_session=True,
        bufsize=0,
    )


class _Watched:
    """The parent's side of the pipes while the child runs."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, job: bytes, limits: Limits, scratch: Path) -> None:
        self.process, self.reading, self.limits, self.scratch = process, reading, limits, scratch
        self.job, self.verdict, self.output = memoryview(job), b"", b""
        self.began = time.monotonic()

    def follow(self) -> tuple[Ending, str] | None:
        """Feed and read until the child is gone; what it had to be stopped for, else None."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        os.set_blocking(stdin.fileno(), False)
        with selectors.DefaultSelector() as waiting:
            waiting.register(stdin, selectors.EVENT_WRITE)
            waiting.register(stdout, selectors.EVENT_READ)
            waiting.register(self.reading, selectors.EVENT_READ)
            while waiting.get_map():
                for key, _ in waiting.select(0.05):
                    done = self._feed(key.fd) if key.fileobj is stdin else self._read(key.fd)
                    if done:
                        waiting.unregister(key.fileobj)
                        if key.fileobj is stdin:
                            stdin.close()
                stopped = self._too_much()
                if stopped is not None:
                    return stopped
        try:
            self.process.wait(max(0.0, self.began + self.limits.seconds - time.monotonic()))
        except subprocess.TimeoutExpired:  # it closed its pipes and goes on
            return "timeout", f"it ran longer than {self.limits.seconds:g} s"
        return None

    def _feed(self, fd: int) -> bool:
        try:
            self.job = self.job[os.write(fd, self.job) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return not self.job

    def _read(self, fd: int) -> bool:
        part = os.read(fd, 1 << 16)
        if fd == self.reading:
            self.verdict = (self.verdict + part)[: 1 << 16]
        else:
            self.output += part
        return not part

    def _too_much(self) -> tuple[Ending, str] | None:
        if time.monotonic() - self.began > self.limits.seconds:
            return "timeout", f"it ran longer than {self.limits.seconds:g} s"
        if len(self.output) > self.limits.output_kb << 10:
            return "output", f"it printed more than {self.limits.output_kb} kB"
        if _size(self.scratch) > self.limits.scratch_mb << 20:
            return "files", f"its files took more than {self.limits.scratch_mb} MB"
        return None

    def told(self, token: str, stopped: tuple[Ending, str] | None) -> tuple[dict[str, bool], Outcome | None]:
        """The barriers, from the line that `confine` wrote before any of the code ran, and the outcome."""
        first, _, rest = self.verdict.partition(b"\n")
        ready, _, rest = rest.partition(b"\n")
        seconds = time.monotonic() - self.began
        output = self.output[: self.limits.output_kb << 10].decode("utf-8", "replace")
        held = _barriers_in(first)
        if not all(held.get(name) for name in ("resources", "privileges", "files", "calls")):
            if stopped is not None and not first:  # a machine so busy that the child was not even ready in time
                return held, Outcome(*stopped, output, seconds)
            return held, None
        if ready != b"ready" and stopped is None:
            raise ConfigError(f"Python did not start inside the barriers, so nothing was run: {output.strip()[-500:] or 'it said nothing'}")
        own = token.encode() + b" "
        if stopped is None and rest.startswith(own):
            how, _, detail = rest[len(own) :].decode("utf-8", "replace").partition(" ")
            return held, Outcome(how, detail or _REASONS.get(how, ""), output, seconds)  # type: ignore[arg-type]  # `inside` says it
        ended, why = stopped or self._by_signal()
        return held, Outcome(ended, why, output, seconds)

    def _by_signal(self) -> tuple[Ending, str]:
        code = self.process.returncode
        if code < 0:
            return _SIGNALS.get(-code, ("killed", f"signal {-code} ended it"))
        return "exited", _REASONS["exited"]


def _barriers_in(line: bytes) -> dict[str, bool]:
    try:
        held: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return {name: bool(held[name]) for name in held}


def _size(folder: Path) -> int:
    """Bytes below a folder, each entry counted as one block at least; links are not followed."""
    total = 0
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                total += 4096 + os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue  # gone since
    return total
