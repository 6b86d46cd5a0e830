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
    wobble: float = 0.0,
) -> Records:
    """Metrics of a run. `time` is the share of the run in which the loss falls to 1/e of the way, `rise` what the held-out loss gains.

    `noise` is the standard deviation of a step's loss, as a share of it; with `tails` it is Student's with 4 degrees of freedom.
    `wobble` is that of the whole held-out loss from one evaluation to the next, as the weights move about.
    """
    rng = np.random.default_rng(seed)
    draw = (lambda: float(rng.standard_t(4)) / 2**0.5) if tails else (lambda: float(rng.normal()))
    records: Records = []
    for step in range(1, steps + 1):
        off = noise * draw()
        loss = (floor + (start - floor) * np.exp(-(step - 1) / steps / time)) * max(0.1, 1 + off)
        norm = np.exp(0.2 * rng.normal() + off)
        if step == spike:
            loss, norm = 3 * loss, 20 * norm
        rate = 0.1e-3 + 0.45e-3 * (1 + np.cos(np.pi * step / steps))
        records.append(
            {"kind": "train", "step": step, "loss": float(loss), "grad_norm": float(norm), "lr": rate, "epoch": epochs * step / steps}
        )
    hard_P = 0.3 * rng.normal(size=min(rows, 32))
    for at in np.linspace(0, steps, evals).round():
        now = floor + (start - floor) * np.exp(-at / steps / time) + rise * (at / steps) ** 2
        now *= 1 + wobble * min(1.0, at) * rng.normal()
        parts = now + hard_P + 0.03 * (start - now) / (start - floor) * rng.normal(size=len(hard_P))
        records.append({"kind": "eval", "step": int(at), "loss": float(parts.mean()), "parts": parts.tolist()})
    return records


def healthy_curves(seed: int) -> Records:
    """A healthy run drawn at random: short or long, noisy or not, with many held-out rows, few, or none."""
    rng = np.random.default_rng([seed, 1])
    start = float(rng.uniform(1.5, 6))
    return made_curves(
        steps=int(rng.choice([6, 8, 16, 30, 60, 120, 300])),
        evals=int(rng.choice([0, 2, 5, 5, 5, 11])),
        seed=seed,
        noise=float(rng.choice([0.02, 0.05, 0.1, 0.2, 0.35])),
        start=start,
        floor=start * float(rng.uniform(0.05, 0.8)),
        time=float(rng.uniform(0.05, 0.5)),
        epochs=float(rng.choice([0.5, 1, 2, 3])),
        rows=int(rng.choice([1, 3, 8, 50, 200])),
        tails=bool(seed % 2),
        wobble=float(rng.choice([0, 0.003, 0.01])),
    )
