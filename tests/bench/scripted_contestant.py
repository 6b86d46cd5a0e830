"""A contestant that does as it is told: the harness's tests run it as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from bench.contestant import Request, serve


def say(request: Request) -> dict[str, Any]:
    """Print, as libraries do, and reply."""
    print("a library prints on standard output")
    return {"seconds": request["seconds"], "heard": request["words"]}


def fail(request: Request) -> dict[str, Any]:
    """Raise."""
    raise ValueError(f"row {request['row']} is odd")


def die(request: Request) -> dict[str, Any]:
    """End without a reply."""
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)


def take_memory(request: Request) -> dict[str, Any]:
    """Fill memory, here or in a child, for long enough to be seen."""
    if request["child"]:
        subprocess.run([sys.executable, "-c", f"import time; b = b'x' * {request['bytes']}; time.sleep(0.4)"], check=True)
    else:
        filled = b"x" * request["bytes"]
        time.sleep(0.3)
        del filled
    return {}


if __name__ == "__main__":
    serve({"say": say, "fail": fail, "die": die, "take_memory": take_memory}, {"scripted": "1"})
