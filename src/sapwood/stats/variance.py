"""What a score varies with: items, samples of an answer, training seeds. Scores in, components out, and where to spend next.

The model is y = mean + item + seed + (item × seed) + sample, all drawn at random; components come from the mean squares of a balanced
table (Montgomery, "Design and analysis of experiments", two-factor random effects; Searle, Casella and McCulloch 1992, ch. 4).
Left out on purpose: tables with gaps; leave out the items that were not scored everywhere, and say how many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sapwood.errors import DataError


@dataclass(frozen=True, slots=True)
class VarianceSplit:
    """Variances of single scores. None where the table cannot tell: one seed hides seeds, one sample hides sampling."""

    item: float
    """Between items: some are harder. With one seed, what this training makes of an item is in it too."""
    seed: float | None
    """Between trainings, in all items alike."""
    item_and_seed: float | None
    """What a training does to single items. With one sample, the noise of sampling is in it too."""
    sampling: float | None
    """Between samples of one answer."""
    items: int
    seeds: int
    samples: int
    cut: tuple[str, ...]
    """Components whose estimate was below 0 and is given as 0: too little to be told from nothing here."""

    @property
    def of_mean(self) -> dict[str, float]:
        """What each adds to the variance of the mean score over other items, trainings and samples."""
        per = {
            "item": self.item / self.items,
            "seed": (self.seed or 0.0) / self.seeds,
            "item_and_seed": (self.item_and_seed or 0.0) / (self.items * self.seeds),
            "sampling": (self.sampling or 0.0) / (self.items * self.seeds * self.samples),
        }
        return {name: value for name, value in per.items() if getattr(self, name) is not None}

    @property
    def advice(self) -> str:
        """Where more work would narrow the result most, in a sentence."""
        parts = self.of_mean
        whole = sum(parts.values())
        unseen = " Between trainings nothing is known: one seed was trained." if self.seeds == 1 else ""
        if whole == 0:
            return f"Nothing varies here.{unseen}"
        largest = max(parts, key=lambda name: parts[name])
        words = {"item": "more items", "seed": "more trainings", "item_and_seed": "more items or trainings", "sampling": "more samples"}
        return f"{parts[largest] / whole:.0%} of the mean's variance would be narrowed by {words[largest]}.{unseen}"


def variance_split(scores: ArrayLike) -> VarianceSplit:
    """Components of a table of scores of shape (seeds, items, samples). Raises `DataError` for other shapes, gaps, or one item."""
    y = np.asarray(scores, dtype=np.float64)
    if y.ndim != 3 or y.shape[1] < 2 or min(y.shape) < 1 or not bool(np.isfinite(y).all()):
        raise DataError(
            f"A split of variance needs finite scores of shape (seeds, items, samples) with at least two items; found shape {y.shape}."
        )
    seeds, items, samples = y.shape
    whole, of_item, of_seed, of_cell = y.mean(), y.mean((0, 2)), y.mean((1, 2)), y.mean(2)
    ms_item = seeds * samples * float(((of_item - whole) ** 2).sum()) / (items - 1)
    ms_error = float(((y - of_cell[:, :, None]) ** 2).sum()) / (seeds * items * (samples - 1)) if samples > 1 else None
    found: dict[str, float | None] = {"seed": None, "item_and_seed": None, "sampling": ms_error}
    if seeds == 1:
        found["item"] = (ms_item - (ms_error or 0.0)) / samples
    else:
        apart = of_cell - of_item[None, :] - of_seed[:, None] + whole
        ms_both = samples * float((apart**2).sum()) / ((seeds - 1) * (items - 1))
        ms_seed = items * samples * float(((of_seed - whole) ** 2).sum()) / (seeds - 1)
        found |= {"item": (ms_item - ms_both) / (seeds * samples), "seed": (ms_seed - ms_both) / (items * samples)}
        found["item_and_seed"] = (ms_both - (ms_error or 0.0)) / samples
    cut = tuple(name for name, value in found.items() if value is not None and value < 0)
    kept = {name: None if value is None else max(0.0, value) for name, value in found.items()}
    return VarianceSplit(kept["item"] or 0.0, kept["seed"], kept["item_and_seed"], kept["sampling"], items, seeds, samples, cut)
