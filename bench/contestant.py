"""One contestant's process, from the inside: a request a line comes in, a reply a line goes out, both JSON.

    out   {"ready": {"trl": "1.16.0", …}}                     once, when everything is imported
    in    {"task": "prepare", "file": "…"}
    out   {"reply": {…, "cpu_seconds": 1.5}}  or  {"error": "traceback"}

Standard output belongs to the replies: whatever a library prints goes to standard error. Standard library only, for this
file runs in every peer's environment. Left out on purpose: more than one request at a time.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

Request = Mapping[str, Any]
Task = Callable[[Request], dict[str, Any]]


def versions_of(packages: list[str]) -> dict[str, str]:
    """The installed versions of packages, and of Python."""
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


def serve(tasks: Mapping[str, Task], versions: Mapping[str, str]) -> None:
    """Answer requests until standard input ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        _reply(out, {"ready": dict(versions)})
        for line in sys.stdin:
            request = json.loads(line)
            try:
                before = _cpu_seconds()
                reply = tasks[request["task"]](request)
                _reply(out, {"reply": {**reply, "cpu_seconds": _cpu_seconds() - before}})
            except Exception:  # noqa: BLE001 - the other side says which contestant it was, and stops
                _reply(out, {"error": traceback.format_exc()})


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended: what the work costs, whoever else keeps the cores busy."""
    return sum(os.times()[:4])


def _reply(out: Any, content: dict[str, Any]) -> None:
    out.write(json.dumps(content) + "\n")
    out.flush()
