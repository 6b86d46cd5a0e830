"""Decode steps as CUDA graphs: captured when a shape first comes, replayed from then on.

In: a key that says all that a step's kernels depend on but the content of tensors that never move, and a function that runs it.
Out: the logits. On other devices the function just runs. Graphs share one pool of memory: they never run side by side, and what one leaves
in the pool is used before the next. A step that asks the host (experts chosen one by one do) can be no graph: that is found out in its
warm-up, told once, and its steps run as they are.
Left out on purpose: `torch.compile`. It would fuse what lies between the products, but it needs a compiler, compiles each shape for
tens of seconds, and guards on Python that changes with every adapter; a graph takes what runs anyway, as it is tested.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

MOST = 48
"""Graphs that are kept; the one used longest ago goes first. Six batches times eight widths."""

WARM_UPS = 2
"""Runs before a capture: kernels are loaded and workspaces made by then."""

logger = logging.getLogger(__name__)


class Graphs:
    """The captured steps of one engine."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: OrderedDict[Hashable, tuple[Any, Tensor]] = OrderedDict()
        self._pool: Any = None
        self.why_not = "" if device.type == "cuda" else f"{device.type} has no graphs"
        """Why steps are not captured; empty where they are."""

    def run(self, key: Hashable, step: Callable[[], Tensor]) -> Tensor:
        """The logits of a step. They lie where the next run of this key writes its own. A step must give the same when it is run again."""
        if self.why_not:
            return step()
        if key not in self._captured:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            try:
                self._captured[key] = _capture(step, self._pool, self._device)
            except HostAskedError as error:
                self.why_not = str(error)
                logger.info("This model's decode steps cannot be captured, and run as they are: %s.", self.why_not)
                return step()
            if len(self._captured) > MOST:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        graph, logits_BV = self._captured[key]
        graph.replay()
        return logits_BV

    def drop(self) -> None:
        """Forget them: something that they hold the address of has moved."""
        self._captured.clear()
        self._pool = None


class HostAskedError(RuntimeError):
    """The step waits for the device, so it cannot be captured."""


def _capture(step: Callable[[], Tensor], pool: Any, device: torch.device) -> tuple[Any, Tensor]:
    """The graph of a step, and where its replay leaves the logits. Nothing of it has run for its result when this returns.

    The one function that only a GPU can run. Warm-up goes on a stream of its own, as torch's notes on CUDA graphs ask.
    """
    cuda: Any = torch.cuda
    with torch.cuda.device(device):
        stream = cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    step()
                _watched(step)
        finally:
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):  # other threads go on
            logits_BV = step()
    return graph, logits_BV


def _watched(step: Callable[[], Tensor]) -> None:
    """Run a step. Raises `HostAskedError` if it waits for the device: a capture would fail, and leave torch's memory in disorder."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise HostAskedError(str(error).splitlines()[0]) from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)
