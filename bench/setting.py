"""Where a number was measured, and the environment in which the peers live.

`peer_python` makes `.venv-bench` beside the source on first use: torch first and alone, by its exact version (any other
request may pull gigabytes of CUDA), then `requirements.txt`. It is made again when those pins change.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from sapwood.errors import AssetError, storage
from sapwood.recipes.screen import Screen

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
PEERS = ROOT / ".venv-bench"
ON_A_GPU = ROOT / ".venv-bench-cuda", ROOT / "bench" / "requirements-cuda.txt"
LLAMACPP, LLAMACPP_PINS = ROOT / ".venv-llamacpp", ROOT / "bench" / "requirements-llamacpp.txt"
"""llama.cpp has an environment of its own, for it is compiled: whoever compares with TRL alone needs no compiler."""
TORCH = "torch==2.13.0"


def peer_python(
    screen: Screen, folder: Path = PEERS, requirements: Path = ROOT / "bench" / "requirements.txt", torch: str | None = TORCH
) -> Path:
    """The Python of the peers' environment, which is made first where it is missing or its pins have changed.

    Raises `AssetError` where pip cannot install the pins, `StorageError` where the folder cannot be written.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / ".installed"
    wanted = hashlib.sha256(f"{torch}\n{_pins(requirements)}".encode()).hexdigest()
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    what = f"{torch} and {_listed(requirements)}" if torch else _listed(requirements)
    size = "on Linux that is about 1.5 GB of disk, once" if torch else "it is compiled, which takes some minutes, once"
    screen.say(
        f"The peers live in an environment of their own, {folder}. Installing {what} into it with pip; {size}. "
        "Delete the folder to be rid of it."
    )
    with storage(folder, "make the environment"):
        venv.create(folder, with_pip=True, clear=folder.exists())
    first = [torch] if torch else []
    for wanted_now in ([first] if first else []) + [[*first, "--requirement", str(requirements)]]:
        _pip(python, wanted_now, folder)
    stamp.write_text(wanted)
    return python


def peers_for(device: str, screen: Screen) -> Path:
    """The Python of TRL's environment for a device. Raises as `peer_python` does."""
    return peer_python(screen, *ON_A_GPU) if device == "cuda" else peer_python(screen)


def _pins(requirements: Path) -> str:
    """The file's text, and in the place of `-r FILE` that file's."""
    lines = requirements.read_text().splitlines(keepends=True)
    return "".join(_pins(requirements.parent / line[3:].strip()) if line.startswith("-r ") else line for line in lines)


def _listed(requirements: Path) -> str:
    lines = [line.strip() for line in _pins(requirements).splitlines()]
    return ", ".join(line for line in lines if line and not line.startswith("#"))


def _pip(python: Path, what: Sequence[str], folder: Path) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        said = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("WARNING"))[-1500:]
        raise AssetError(
            f"{folder}: pip could not install {' '.join(what)} (exit code {done.returncode}). Check the network or pip's own settings, "
            f"then run the same command again; it goes on from there. pip said:\n{said}"
        )


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine, its GPU where that is measured, and how busy it was when asked: a shared one makes seconds worthless, ratios less so."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
    if device == "cuda":
        from torch import cuda, version  # not everyone who reads this file has torch

        facts = cuda.get_device_properties(0)
        found["gpu"] = {"name": facts.name, "memory_bytes": facts.total_memory, "cuda": version.cuda}
    with contextlib.suppress(OSError):
        found["load_average"] = [round(value, 2) for value in os.getloadavg()]
    return found


def busy(screen: Screen) -> None:
    """Say so where other work is already running."""
    with contextlib.suppress(OSError):
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores / 2:
            screen.say(f"This machine is busy (load {load:.1f} on {cores} cores): trust the ratios, not the seconds.", "yellow")


def _processor() -> str:
    """Its name, and family and model: a cloud gives several generations of one maker the same name."""
    with contextlib.suppress(OSError):
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
        found = {key.strip(): value.strip() for key, _, value in lines}
        if "model name" in found:
            numbers = ", ".join(f"{name} {found[key]}" for key, name in (("cpu family", "family"), ("model", "model")) if key in found)
            return found["model name"] + (f" ({numbers})" if numbers else "")
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit that is checked out, with `+` if files have changed since; None without git."""
    git = shutil.which("git")
    if git is None:
        return None
    head = subprocess.run([git, "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return None
    changed = subprocess.run([git, "-C", str(ROOT), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())


if __name__ == "__main__":  # make bench-setup
    peer_python(Screen())
