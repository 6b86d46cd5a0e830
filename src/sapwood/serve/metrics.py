"""Counters and histograms in Prometheus' text format (version 0.0.4): a few numbers, so no client library.

In: what happened to each request. Out: the page of `/metrics`. Belongs to the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the histograms, in seconds."""


class Histogram:
    """How often a time fell below each bound."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, label: str = "") -> list[str]:
        """Its part of the page, with one more label where there are several of that name."""
        found, total = [], 0
        before, alone = (f"{label},", f"{{{label}}}") if label else ("", "")
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{{before}le="{bound}"}} {total}')
        return [*found, f"{name}_sum{alone} {self._sum:.6f}", f"{name}_count{alone} {total}"]


class Arm:
    """What one arm of an experiment has done."""

    def __init__(self) -> None:
        self.failed = self.completion_tokens = 0
        self.whole = Histogram()


class Metrics:
    """What a server has done."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By (path, status)."""
        self.prompt_tokens = self.completion_tokens = self.cut = 0
        self.whole, self.first = Histogram(), Histogram()
        self.arms: dict[str, Arm] = {}
        """By name, where an experiment runs. Requests that name no unit are answered by the control, and counted there."""

    def page(self, load: tuple[int, int], under_way: int) -> str:
        """The page. `load` are sequences that run and that wait."""
        lines = ["# HELP sapwood_requests_total Requests answered.", "# TYPE sapwood_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'sapwood_requests_total{{path="{path}",status="{status}"}} {count}')
        numbers = [
            ("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens),
            ("completion_tokens_total", "counter", "Tokens sampled.", self.completion_tokens),
            ("requests_cut_total", "counter", "Requests whose client left, or that broke.", self.cut),
            ("requests_under_way", "gauge", "Requests under way.", under_way),
            ("sequences_running", "gauge", "Sequences that take a token each step.", load[0]),
            ("sequences_waiting", "gauge", "Sequences that wait for a place.", load[1]),
        ]
        for name, kind, text, value in numbers:
            lines += [f"# HELP sapwood_{name} {text}", f"# TYPE sapwood_{name} {kind}", f"sapwood_{name} {value}"]
        for name, text, histogram in (
            ("sapwood_request_seconds", "Seconds until the whole answer.", self.whole),
            ("sapwood_first_token_seconds", "Seconds until the first piece of a streamed answer.", self.first),
        ):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram", *histogram.lines(name)]
        return "\n".join([*lines, *self._of_arms()]) + "\n"

    def _of_arms(self) -> list[str]:
        if not self.arms:
            return []
        lines: list[str] = []
        counters: list[tuple[str, str, Callable[[Arm], int]]] = [
            ("sapwood_arm_failed_total", "Answers that failed, by arm.", lambda arm: arm.failed),
            ("sapwood_arm_completion_tokens_total", "Tokens sampled, by arm.", lambda arm: arm.completion_tokens),
        ]
        for name, text, value in counters:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            lines += [f'{name}{{arm="{_escaped(which)}"}} {value(arm)}' for which, arm in self.arms.items()]
        lines += ["# HELP sapwood_arm_seconds Seconds until the whole answer, by arm.", "# TYPE sapwood_arm_seconds histogram"]
        for which, arm in self.arms.items():
            lines += arm.whole.lines("sapwood_arm_seconds", f'arm="{_escaped(which)}"')
        return lines


def _escaped(value: str) -> str:
    """A label's value, as the format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
