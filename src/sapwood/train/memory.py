"""Memory of this process, or of its tensors on a GPU: what it may still take, what it holds, the most that it held.

In: nothing but the machine, or a device. Out: bytes. `Watch` sees what the system sees, allocator's holes included, and on a GPU what
torch has handed out there; `Tensors` counts the tensors that are alive, which is the same number on every machine.
Left out on purpose: resetting the system's own record of the peak. Whoever measures this process from outside needs it.
"""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sapwood.kernels.allocator import give_pages_back

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


CPU = torch.device("cpu")
_most_on_a_gpu = 0
"""The most that was held before torch's own record was last begun anew."""


def free_memory(device: torch.device = CPU) -> int:
    """Bytes that this process may still take; on a GPU what nobody holds, and what torch holds there without using it."""
    if device.type != "cuda":
        return available_memory()
    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def resident_memory(device: torch.device = CPU) -> int:
    """Bytes of memory that this process holds now; of a GPU, that its tensors take there."""
    return int(torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss)


def synchronize(device: torch.device) -> None:
    """Wait until all that was asked of a GPU is done: where a clock is read, nothing may be under way."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def give_back(device: torch.device) -> None:
    """What no longer serves goes back to the system, or to the GPU: after memory ran out, and before another kind of work."""
    gc.collect()  # layers and their fused forwards hold each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        give_pages_back()


def peak_memory() -> int:
    """The most bytes that this process has held so far, rehearsal and loading included; on a GPU, of the GPU's memory."""
    if torch.cuda.is_available() and (most := max(_most_on_a_gpu, torch.cuda.max_memory_allocated())):  # 0: nothing was put there
        return int(most)
    if most := _recorded():
        return most
    try:
        import resource  # not on Windows
    except ImportError:
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on a Mac


def _recorded() -> int:
    """The system's own record of the most bytes that this process held; 0 where there is none (it is Linux's)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        return 0


def room(device: torch.device = CPU) -> int:
    """Bytes that the process may grow to: what it holds and nearly all that is free."""
    return resident_memory(device) + int(SPARE * free_memory(device))


class Watch:
    """The most bytes that the process held while a block ran: `peak`. On a GPU torch keeps that record.

    A block in which the process grew beyond all that it had held leaves its peak in the system's own record. Of others, and where there is
    no record, a thread looks every few milliseconds, and may miss a short peak on a busy machine.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.before = self.peak = self._record = 0
        self._device = device
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self.peak = max(self.peak, int(self._process.memory_info().rss))

    def __enter__(self) -> Watch:
        if self._device.type == "cuda":
            global _most_on_a_gpu
            _most_on_a_gpu = max(_most_on_a_gpu, torch.cuda.max_memory_allocated(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)
            self.before = self.peak = resident_memory(self._device)
            return self
        self.before = self.peak = int(self._process.memory_info().rss)
        self._record = _recorded()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type != "cuda":
            self._ended.set()
            self._thread.join()
        self.peak = self.seen()

    def seen(self) -> int:
        """The most bytes so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        record = _recorded()
        return max(self.peak, int(self._process.memory_info().rss), record if record > self._record else 0)

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
