"""What an evaluation predicted, beside what is seen in use.

In: a run's verdict and a comparison. Out: both intervals and a sentence. They measure different things (items that were chosen, units
that came), so they are set beside each other and never pooled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapwood.ab.analysis import Analysis, signed
from sapwood.run import read_json


@dataclass(frozen=True, slots=True)
class Prediction:
    """The offline difference, and how the live one compares."""

    run: str
    mean: float | None
    low: float | None
    high: float | None
    line: str

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"run": self.run, "mean": self.mean, "low": self.low, "high": self.high, "line": self.line}


def prediction(analysis: Analysis) -> Prediction | None:
    """None where the plan names no run."""
    folder = analysis.plan.offline
    if folder is None:
        return None
    found = read_json(Path(folder) / "verdict.json").get("difference")
    numbers = [found.get(name) for name in ("mean", "low", "high")] if isinstance(found, dict) else []
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        return Prediction(str(folder), None, None, None, f"{folder} holds no verdict, so nothing was predicted.")
    mean, low, high = (float(number) for number in numbers)  # type: ignore[arg-type]
    said = f"Offline predicted {signed(mean)} [{signed(low)}, {signed(high)}]"
    if analysis.split.broken:
        return Prediction(str(folder), mean, low, high, f"{said}; online nothing can be said while the split is broken.")
    gain = analysis.comparisons[0].primary.gain
    if gain.low > high:
        how = "more than was predicted"
    elif gain.high < low:
        how = "less than was predicted: the items are not what users ask, or the metric is not what they want"
    else:
        how = "in keeping with it"
    seen = f"{signed(gain.mean)} [{signed(gain.low)}, {signed(gain.high)}]"
    return Prediction(str(folder), mean, low, high, f"{said}, online shows {seen}: {how}.")
