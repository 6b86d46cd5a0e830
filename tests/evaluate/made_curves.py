"""Curves made from a formula: an exponential fall with noise, on which each fault can be planted."""

from __future__ import annotations

from typing import Any

import numpy as np

Records = list[dict[str, Any]]


def made_curves(
    *,
    steps: int = 60,
    evals: int = 5,
    seed: int = 0,
    noise: float = 0.1,
    start: float = 3.0,
    floor: float = 1.0,
    time: float = 0.15,
    rise: float = 0.0,
    spike: int | None = None,
    epochs: float = 2.0,
    rows: int = 20,
    tails: bool = False,
) -> Records:
    """Metrics of a run. `time` is the share of the run in which the loss falls to 1/e of the way, `rise` what the held-out loss gains.

    `noise` is the standard deviation of a step's loss, as a share of it; with `tails` it is Student's with 4 degrees of freedom.
    """
    rng = np.random.default_rng(seed)
    draw = (lambda: float(rng.standard_t(4)) / 2**0.5) if tails else (lambda: float(rng.normal()))
    records: Records = []
    for step in range(1, steps + 1):
        loss = (floor + (start - floor) * np.exp(-(step - 1) / steps / time)) * np.exp(noise * draw())
        norm = np.exp(0.2 * rng.normal())
        if step == spike:
            loss, norm = 3 * loss, 20 * norm
        rate = 0.1e-3 + 0.45e-3 * (1 + np.cos(np.pi * step / steps))
        records.append(
            {"kind": "train", "step": step, "loss": float(loss), "grad_norm": float(norm), "lr": rate, "epoch": epochs * step / steps}
        )
    hard_P = 0.3 * rng.normal(size=min(rows, 32))
    for at in np.linspace(0, steps, evals).round():
        now = floor + (start - floor) * np.exp(-at / steps / time) + rise * (at / steps) ** 2
        parts = now + hard_P + 0.03 * (1 - np.exp(-5 * at / steps)) * rng.normal(size=len(hard_P))
        records.append({"kind": "eval", "step": int(at), "loss": float(parts.mean()), "parts": parts.tolist()})
    return records
