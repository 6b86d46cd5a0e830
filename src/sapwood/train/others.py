"""What other programs take of the processors, while something is measured: times taken beside them are times of a busy machine.

In: nothing but the machine. Out: a share from 0 to 1 of all processors. Time that a hypervisor takes away counts as others'.
Left out on purpose: memory and its bandwidth, for which no system keeps such an account.
"""

from __future__ import annotations

import time

import psutil

GLANCE = 0.2
"""Seconds in which `others_now` looks."""


class Others:
    """Begins to look when it is made."""

    def __init__(self) -> None:
        self._before = _seconds()

    def share(self) -> float:
        """Of all processor time since then, what other programs took."""
        whole, idle, own = (now - before for now, before in zip(_seconds(), self._before, strict=True))
        return min(1.0, max(0.0, (whole - idle - own) / whole)) if whole > 0 else 0.0


def others_now() -> float:
    """What other programs take at this moment."""
    looking = Others()
    time.sleep(GLANCE)
    return looking.share()


def _seconds() -> tuple[float, float, float]:
    """Processor seconds so far, over all processors: in all, idle, and of this process."""
    taken = psutil.cpu_times()
    named = taken._asdict()
    inside = named.get("guest", 0.0) + named.get("guest_nice", 0.0)  # these are in user and nice already
    own = psutil.Process().cpu_times()
    return sum(taken) - inside, taken.idle + named.get("iowait", 0.0), own.user + own.system
