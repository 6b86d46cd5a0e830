"""The two seams. Evaluation, GRPO, judges and serving know nothing else of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sapwood.records.rows import Row
from sapwood.records.sampling import Completion, Prompt, SamplingParams

OnToken = Callable[[int, int], None]
"""Called with (index of the prompt, token id) as each token is sampled."""


class Sampler(Protocol):
    """Anything that answers prompts: the local engine, a remote server, a scripted fake."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        on_token: OnToken | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in the order of the prompts. A failure is a `Completion` with `Ended.ERROR`.

        `on_token` streams; `cancelled` is polled between tokens, and what was sampled by then is returned.
        """
        ...


def release(holder: object) -> None:
    """Give back the memory of what a sampler in this process holds of prompts and answers (`Engine.release`), or a scorer of weights;
    others hold none."""
    give_back = getattr(holder, "release", None)
    if give_back is not None:
        give_back()


class LogProber(Protocol):
    """Anything that says how likely given completions are."""

    def logprobs(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """For each row the log-probability of each completion token, at temperature 1."""
        ...
