"""A plan as lines with bars for a terminal, as a few lines in front of a run, and as numbers for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sapwood.train.estimate import BUSY, GIB, duration

if TYPE_CHECKING:
    from sapwood.recipes.plan import Plan

BAR = 32
"""Letters of the longest bar."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


def lines_of(made: Plan) -> list[str]:
    """All that a plan says, the picture of its memory included."""
    parameters = made.estimate.sizes.parameters
    lines = [f"parameters {_count(parameters.total)}, {_count(parameters.trained)} trained ({parameters.trained / parameters.total:.2%})"]
    return [*lines, *_rows(made), "", *memory_lines(made), "", *_time(made), *_disk(made), "", *verdict_lines(made)]


def short_lines(made: Plan) -> list[str]:
    """The few lines that stand in front of a run."""
    known = made.estimate.measured is not None
    peak = f"memory     about {gib(made.peak)} at the peak of training, {gib(made.room)} may be taken"
    lines = [peak if known else made.estimate.unmeasured, *_time(made)]
    return lines if made.fits else [*lines, *verdict_lines(made)]


def memory_lines(made: Plan) -> list[str]:
    """A bar for each part of the memory, to the scale of the larger of the peak and what may be taken."""
    parts, known = made.parts, made.estimate.measured is not None
    named = {
        "weights": parts.weights,
        "adapters": parts.adapters,
        "optimizer": parts.optimizer,
        "gradients": parts.gradients,
        "activations": parts.activations if known else None,
        "head": parts.head if known else None,
        "program": parts.program,
    }
    scale = max(made.peak, made.room)
    lines = ["memory at the peak of training"]
    for name, size in named.items():
        if size != 0:
            lines.append(f"  {name:<12}" + ("   not measured" if size is None else f"{gib(size):>10}  {_bar(size / scale)}"))
    lines.append(f"  {'together':<12}{gib(made.peak):>10}  {_bar(made.peak / scale)}")
    lines.append(f"  {'may take':<12}{gib(made.room):>10}  {_bar(made.room / scale)}")
    return lines


def verdict_lines(made: Plan) -> list[str]:
    """Whether it fits, and what would make it fit."""
    if made.estimate.measured is None and made.fits:
        return [made.estimate.unmeasured]
    if made.fits:
        return [f"It fits: {gib(made.room - made.peak)} are left. The worst-case step is tried before step 1."]
    lines = [f"It does not fit: {gib(made.peak - made.room)} are missing."]
    if not made.ways:
        return [*lines, "No single option makes it fit. Take a smaller model, or a machine with more memory."]
    lines.append("What would make it fit:")
    return [*lines, *(f"  {way.options or 'shorter rows':<32}{gib(way.peak):>10}  {way.effect}" for way in made.ways)]


def _rows(made: Plan) -> list[str]:
    work = made.work
    saved = 1 - work.tokens / work.row_tokens
    about = "" if made.steps_looked_at == made.steps else f", by {made.steps_looked_at} steps that were cut"
    return [
        f"rows       {made.examples:,} examples, {made.steps:,} steps of {made.train.batch}",
        f"tokens     {work.row_tokens:,} of the rows, {work.tokens:,} to compute: {saved:.0%} saved by sharing{about}",
        f"passes     {work.passes / made.steps:.1f} a step of at most {made.budget:,} tokens; the largest example has {made.longest:,} "
        f"({made.longest_at})",
    ]


def _time(made: Plan) -> list[str]:
    if made.estimate.measured is None:
        return []
    speed, step = made.work.row_tokens / made.training_seconds, made.training_seconds / made.steps
    line = f"time       {duration(made.training_seconds)} of training ({step:.1f} s a step, {speed:,.0f} tokens/s)"
    line += f" and {duration(made.evaluation_seconds)} of losses on what is held out" if made.evaluation_seconds else ""
    beside = made.estimate.measured.others
    busy = f"           measured while other programs took {beside:.0%} of the processors: on a quiet machine it is less"
    price = [f"price      {made.price:,.2f}"] if made.price is not None else []
    return [line, *([busy] if beside > BUSY else []), *price]


def _disk(made: Plan) -> list[str]:
    disk = made.disk
    line = f"disk       {gib(disk.total)}: checkpoints {gib(disk.checkpoints)}, result {gib(disk.result)}, prepared rows {gib(disk.rows)}"
    return [f"{line}; {gib(disk.free)} are free" + ("" if disk.total < disk.free else ": TOO LITTLE. Choose another disk with --out.")]


def _bar(share: float) -> str:
    eighths = max(1, round(share * BAR * 8))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def gib(count: int) -> str:
    """Bytes in the unit that fits them."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def _count(number: int) -> str:
    return f"{number / 1e9:,.2f} B" if number >= 1e9 else f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def record_of(made: Plan, model: str) -> dict[str, Any]:
    """The plan for machines: bytes, seconds, tokens; see docs/plan.md."""
    found, work, disk = made.estimate, made.work, made.disk
    parts = made.parts
    parameters = found.sizes.parameters
    known = found.measured is not None
    return {
        "schema": 1,
        "model": model,
        "parameters": {"total": parameters.total, "trained": parameters.trained, "share": parameters.trained / parameters.total},
        "memory": {
            "program": parts.program,
            "weights": parts.weights,
            "adapters": parts.adapters,
            "optimizer": parts.optimizer,
            "gradients": parts.gradients,
            "activations": parts.activations if known else None,
            "head": parts.head if known else None,
            "peak": made.peak,
            "room": made.room,
            "fits": made.fits,
        },
        "rows": {
            "examples": made.examples,
            "steps": made.steps,
            "steps_looked_at": made.steps_looked_at,
            "row_tokens": work.row_tokens,
            "unique_tokens": work.tokens,
            "saved": 1 - work.tokens / work.row_tokens,
            "passes": work.passes,
            "budget": made.budget,
            "largest_pass": made.largest,
            "largest_example": made.longest,
            "largest_example_at": made.longest_at,
        },
        "seconds": {
            "step": made.training_seconds / made.steps if known else None,
            "training": made.training_seconds if known else None,
            "evaluation": made.evaluation_seconds if known else None,
            "total": made.seconds if known else None,
        },
        "row_tokens_per_second": work.row_tokens / made.training_seconds if known else None,
        "others": found.measured.others if found.measured is not None else None,
        "price": made.price,
        "disk": {"checkpoints": disk.checkpoints, "result": disk.result, "rows": disk.rows, "total": disk.total, "free": disk.free},
        "ways": [{"options": way.options, "peak": way.peak, "effect": way.effect} for way in made.ways],
        "unmeasured": found.unmeasured or None,
    }
