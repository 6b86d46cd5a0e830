"""Memory of this process: what it may still take, what it holds, the most that it held.

In: nothing but the machine. Out: bytes. `Watch` sees what the system sees, allocator's holes included; `Tensors` counts the
tensors that are alive, which is the same number on every machine.
Left out on purpose: resetting the system's own record of the peak. Whoever measures this process from outside needs it.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_EVERY_SECONDS = 0.005
"""Looking takes time from what is looked at: every 2 ms it was 3 % of a pass."""
SPARE = 0.95
"""Share of the free memory that a run may take: the rest is for what else the machine does."""
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Files of a container's limit, of what is used of it, and of how much of that are files' pages that can be given back."""


def available_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take without swapping: what the machine has free, or less where a container or a limit says so."""
    free = [int(psutil.virtual_memory().available)]
    for most, used, what in _GROUPS:
        try:
            left = int((groups / most).read_text()) - int((groups / used).read_text())
            lines = dict(line.split() for line in (groups / what).read_text().splitlines())
            free.append(left + int(lines.get("inactive_file", 0)))
        except (OSError, ValueError):  # no such group here, or it has no limit ("max")
            continue
    try:
        import resource  # not on Windows
    except ImportError:
        return max(0, min(free))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free.append(limit - int(psutil.Process().memory_info().vms))
    return max(0, min(free))


def resident_memory() -> int:
    """Bytes of memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """The most bytes that this process has held so far, rehearsal and loading included; on a GPU, of the GPU's memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():  # 0 where nothing was put there
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):  # no Linux
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on a Mac


def room() -> int:
    """Bytes that the process may grow to: what it holds and nearly all that is free."""
    return resident_memory() + int(SPARE * available_memory())


class Watch:
    """Looks at the process while a block runs: `peak` is the most bytes that it was seen to hold."""

    def __init__(self) -> None:
        self.before = self.peak = 0
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self.peak = max(self.peak, int(self._process.memory_info().rss))

    def __enter__(self) -> Watch:
        self.before = self.peak = int(self._process.memory_info().rss)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak = max(self.peak, int(self._process.memory_info().rss))

    def seen(self) -> int:
        """The most bytes so far."""
        return max(self.peak, int(self._process.memory_info().rss))

    @property
    def growth(self) -> int:
        """Bytes by which the process grew at its peak."""
        return self.peak - self.before


class Tensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made in a block, as long as each lives. `kept` are tensors that are not counted."""

    def __init__(self, kept: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._not_counted = {tensor.untyped_storage()._cdata for tensor in kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._not_counted:
            return
        self._sizes[key] = size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
