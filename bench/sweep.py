"""What "TRL, tuned" means: the best of its settings on the workload at hand, found by trying them.

A setting is precision, rows a pass (the rest accumulates to the same step), activation checkpointing, padding or one flat row
of each pass (TRL's `padding_free`, which trains the same tokens), threads, and what the allocator keeps. They are searched
one after the other, each around the best so far; each try is a fresh process that takes the very steps of the comparison, the
first uncounted. A try that has taken longer than all steps of the fastest ends there, for it cannot be the fastest any more: the table,
which is part of the result, then says the least that it would take. Left out on purpose: packing, which changes how many rows a step holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import orjson

from sapwood.errors import ConfigError, SapwoodError
from sapwood.recipes.screen import Screen

DEFAULT_ROWS = 8
"""TRL's `per_device_train_batch_size`."""
FINALISTS = 3
"""The fastest settings, which are tried once more: of each its better try counts."""
KEEPING = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_TOP_PAD_": "67108864"}
"""glibc's allocator, told to keep what was freed instead of giving it back to the system."""


@dataclass(frozen=True, kw_only=True)
class TrlSetting:
    """How TRL trains."""

    precision: Literal["bf16", "autocast", "fp32"]
    """`bf16`: frozen weights in it, adapters in fp32; `autocast`: weights in fp32, TRL's own default; or all in fp32."""
    rows: int
    """Rows of a pass."""
    accumulation: int
    """Passes of a step."""
    checkpointing: bool
    flat: bool
    """One flat row of a pass instead of padding (`padding_free`)."""
    threads: int
    """0 leaves it to torch."""
    keeping: bool
    """Whether the allocator keeps what was freed."""
    attention: str = ""
    """transformers' attention; what it chooses itself where nothing is named."""
    liger: bool = False
    """Liger's kernels in the place of the model's layers (`use_liger_kernel`)."""

    def environment(self) -> dict[str, str | None]:
        """What the process gets besides, and what it must not inherit."""
        threads = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        return threads | (KEEPING if self.keeping else dict.fromkeys(KEEPING))


Candidates = list[list[dict[str, Any]]]
"""Stage after stage, the changes that are tried in each."""


def default_setting(peer_rows: int, threads: int) -> TrlSetting:
    """TRL's own defaults for a step of so many rows."""
    rows = min(DEFAULT_ROWS, peer_rows)
    while peer_rows % rows:
        rows -= 1
    return TrlSetting(
        precision="autocast", rows=rows, accumulation=peer_rows // rows, checkpointing=True, flat=False, threads=threads, keeping=False
    )


def candidates(peer_rows: int, threads: int, *, only_fp32: bool = False, few: bool = False) -> tuple[TrlSetting, Candidates]:
    """Where the search begins, and what is tried around it.

    `few` is for steps of half a minute: types and rows a pass alone. What TRL's other trainers have not (`padding_free`) is not among
    them, nor is what computes more by construction (fp32, checkpointing, an allocator that gives back, fewer threads).
    """
    sizes = [rows for rows in ((1, 2, 4) if few else (1, 2, 4, 8)) if peer_rows % rows == 0]
    passes = [{"rows": rows, "accumulation": peer_rows // rows} for rows in sizes]
    precisions = [
        {"precision": kind} for kind in (["fp32"] if only_fp32 else ["bf16", "autocast"] if few else ["bf16", "autocast", "fp32"])
    ]
    fractions = [(os.cpu_count() or 1) // part for part in (2, 4)]
    fewer = [{"threads": count} for count in fractions if count] if not threads else []
    start = TrlSetting(
        precision=precisions[0]["precision"],  # type: ignore[arg-type]
        **passes[min(1, len(passes) - 1)],
        checkpointing=False,
        flat=False,
        threads=threads,
        keeping=True,
    )
    return start, [
        precisions,
        passes,
        [{"flat": True, **one} for one in passes[1:] if not few],
        *([] if few else [[{"checkpointing": True}], [{"keeping": False}], fewer]),
    ]


ATTENTIONS = ("flash_attention_2", "flex_attention")
"""Of transformers', beside sdpa, which is what it chooses. The first needs a package of its own; without it a try is a line that failed."""


def candidates_on_a_gpu(peer_rows: int, *, few: bool = False) -> tuple[TrlSetting, Candidates]:
    """The same where a GPU computes: there all rows of a step in one pass come first, attentions and Liger's kernels are tried, and neither
    threads nor the CPU's allocator."""
    sizes = [rows for rows in range(1, peer_rows + 1) if peer_rows % rows == 0][-4:]
    passes = [{"rows": rows, "accumulation": peer_rows // rows} for rows in sizes]
    start = TrlSetting(precision="bf16", **passes[-1], checkpointing=False, flat=False, threads=0, keeping=False)
    return start, [
        [{"precision": "bf16"}, {"precision": "autocast"}],
        passes,
        [{"attention": name} for name in ATTENTIONS],
        [{"liger": True}],
        *([] if few else [[{"flat": True, "attention": ATTENTIONS[0]}], [{"checkpointing": True}]]),
    ]


SecondsOf = Callable[[TrlSetting, float | None], tuple[float, bool]]
"""Seconds of a step with a setting, and whether all steps were taken: it may give up once a step takes over so many in the mean."""


def search(space: tuple[TrlSetting, Candidates], seconds_of: SecondsOf, screen: Screen, again: int = FINALISTS) -> dict[str, Any]:
    """`best` and the table of all tries; the fastest are tried `again`. Raises `SapwoodError` where not even the first one works."""
    best, stages = space
    screen.say("Finding the peer's best setting for this workload:")
    table: list[dict[str, Any]] = []
    fastest = _tried(best, seconds_of, None, table, screen)
    for number, stage in enumerate(stages):
        if number == 1 and fastest is None:
            raise SapwoodError(f"TRL failed in every precision of its sweep, so there is nothing to compare with. {table[0]['error']}")
        before = best
        for setting in (replace(before, **change) for change in stage):
            if any(asdict(setting).items() <= line.items() for line in table):
                continue
            seconds = _tried(setting, seconds_of, fastest, table, screen)
            if seconds is not None and (fastest is None or seconds < fastest):
                best, fastest = setting, seconds
    whole = [line for line in table if line["tries"] and not line["given_up"]]
    finalists = sorted(whole, key=lambda line: line["seconds"])[:again]
    for line in finalists:  # a lucky second must not choose a weaker peer
        line["tries"].append(seconds_of(_setting_of(line), None)[0])
        line["seconds"] = min(line["tries"])
        screen.say(f"{words_of(_setting_of(line))}, again: {line['tries'][-1]:.2f} s a step")
    fastest_line = min(whole, key=lambda line: line["seconds"])
    return {"best": asdict(_setting_of(fastest_line)), "table": table}


def _setting_of(line: Mapping[str, Any]) -> TrlSetting:
    return TrlSetting(**{field.name: line[field.name] for field in fields(TrlSetting)})


def _tried(setting: TrlSetting, seconds_of: SecondsOf, fastest: float | None, table: list[dict[str, Any]], screen: Screen) -> float | None:
    """Seconds of a step, or None for a setting with which the peer fails; either is a line of the table."""
    try:
        seconds, whole = seconds_of(setting, fastest)
    except SapwoodError as error:
        table.append({**asdict(setting), "seconds": None, "tries": [], "given_up": False, "error": str(error)[-1500:]})
        screen.say(f"{words_of(setting)}: it failed")
        return None
    table.append({**asdict(setting), "seconds": seconds, "tries": [seconds], "given_up": not whole})
    screen.say(f"{words_of(setting)}: {'' if whole else 'over '}{seconds:.2f} s a step")
    return seconds


def words_of(setting: TrlSetting) -> str:
    """A setting in a few words."""
    return ", ".join(
        [
            setting.precision,
            f"{setting.rows} × {setting.accumulation} rows{' flat' if setting.flat else ''}",
            *(["checkpointing"] if setting.checkpointing else []),
            *([setting.attention] if setting.attention else []),
            *(["liger"] if setting.liger else []),
            *([f"{setting.threads} threads"] if setting.threads else []),
            "allocator keeps" if setting.keeping else "allocator as it is",
        ]
    )


def earlier(file: Path, workload: str, peer_rows: int) -> dict[str, Any]:
    """The sweep in an earlier result, for a step of so many rows. `workload` says of which kind it must be: groups of any length serve.

    Raises `ConfigError` where it holds none, or one of another workload.
    """
    try:
        result = orjson.loads(file.read_bytes())
        found: dict[str, Any] = result["sweep"]
        best = TrlSetting(**found["best"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"sweep is {file}: no earlier result with a sweep ({error!r}). Leave it out to search anew.") from None
    if _kind(result["workload"]) != _kind(workload):
        raise ConfigError(f"sweep is {file}: it is of workload {result['workload']}, not {workload}. Leave it out to search anew.")
    if peer_rows % best.rows:
        raise ConfigError(
            f"sweep is {file}: its passes of {best.rows} rows do not make up a step of {peer_rows}. Leave it out to search anew."
        )
    return {**found, "best": asdict(replace(best, accumulation=peer_rows // best.rows)), "of": result["workload"]}


def _kind(workload: str) -> str:
    return workload.removesuffix("-short")
