"""Which barriers hold on this machine: found by sending a program through them that tries to get out.

In: nothing. Out: `Barriers`, one line for a person and a reason to refuse. The probe is our own program, run exactly as a model's
would be; what it reaches counts, not what the kernel said it would do.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from sapwood.errors import ConfigError
from sapwood.evaluate.sandbox.running import Limits, run_confined

_PROBE = """
import json, os, socket
def tried(attempt):
    try:
        attempt()
    except BaseException:
        return True
    return False
def opened(family):
    return lambda: socket.socket(family, socket.SOCK_STREAM)
def write(path):
    return lambda: os.close(os.open(path, os.O_WRONLY))
print(json.dumps({
    "network": tried(opened(socket.AF_INET)) and tried(opened(socket.AF_INET6)) and tried(opened(socket.AF_UNIX)),
    "processes": tried(lambda: os.fork() or os._exit(0)) and tried(lambda: os.execv("/bin/sh", ["sh", "-c", "true"])),
    "signals": tried(lambda: os.kill(os.getppid(), 0)),
    "reading": tried(lambda: os.close(os.open(SECRET, os.O_RDONLY))) and all(tried(lambda: os.listdir(at)) for at in (HOME, "/proc")),
    "writing": tried(write(SECRET)) and tried(lambda: os.unlink(SECRET)) and tried(lambda: os.chmod(SECRET, 0)),
    "memory": tried(lambda: bytearray(1 << 40)),
}))
"""
_NEEDED = ("network", "processes", "signals", "reading", "writing", "memory")


@dataclass(frozen=True)
class Barriers:
    """What was tried from inside, and whether it was stopped."""

    held: dict[str, bool]
    """`network`, `processes`, `signals`, `reading`, `writing`, `memory`; and `namespace`, a second wall that not every system allows."""

    @property
    def enough(self) -> bool:
        return all(self.held.get(name, False) for name in _NEEDED)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in _NEEDED if not self.held.get(name, False))

    def __str__(self) -> str:
        holds = ", ".join(name for name, held in self.held.items() if held) or "none"
        lacks = ", ".join(name for name, held in self.held.items() if not held)
        return f"barriers that hold for code of a model: {holds}" + (f"; not: {lacks}" if lacks else "")


@functools.cache
def barriers() -> Barriers:
    """Try them once; it takes a fraction of a second."""
    with NamedTemporaryFile(prefix="sapwood-secret-") as secret:
        program = f"SECRET, HOME = {secret.name!r}, {str(Path.home())!r}\n{_PROBE}"
        kernel, outcome = run_confined(program, Limits(seconds=30), hook=False)
        there = Path(secret.name).is_file()
    if outcome is None or not outcome.passed:
        return Barriers(dict.fromkeys(_NEEDED, False))
    found: dict[str, bool] = json.loads(outcome.output.splitlines()[-1])
    found["writing"] &= there
    return Barriers({name: found.get(name, False) for name in _NEEDED} | {"namespace": kernel.get("namespace", False)})


def require_barriers() -> Barriers:
    """The barriers, all that are needed among them. Raises `ConfigError` naming those that do not hold."""
    found = barriers()
    if not found.enough:
        raise ConfigError(
            f"Code that a model wrote is not run here: it could get out ({', '.join(found.missing)} not held). Use Linux 5.13 or newer "
            "with Landlock and seccomp (in a container: one whose profile allows them), or leave the scores that run code out."
        )
    return found
