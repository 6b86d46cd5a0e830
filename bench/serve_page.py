"""The figures of docs/serving.md under load, and a command that writes them anew.

    python -m bench.serve_page

In: `bench/results/serve-load.json` (of `python -m bench.serve_load`). Out: what stands between the page's two marks; a test holds the page
to the committed result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.result import result_of, write_blocks
from bench.serve_clients import ANSWERED, LEAVING, REFUSED
from bench.setting import ROOT

PAGE, MODULE = ROOT / "docs" / "serving.md", "bench.serve_page"


def lines(found: Mapping[str, Any] | None) -> list[str]:
    """What the page says of a result."""
    if found is None:
        return ["No result of `python -m bench.serve_load` is committed yet."]
    rounds, left = found["crowd"]["rounds"], found["crowd"]["left_behind"]
    told = ["| | |", "|---|---|"]
    for number, one in enumerate(rounds, 1):
        ended = one["outcomes"]
        told += [
            f"| {found['clients']} clients at once{f', round {number}' if len(rounds) > 1 else ''} | asked for an answer: "
            f"{_ends(ended, ANSWERED)}; asked for what cannot be: {_ends(ended, tuple(REFUSED))}; went away: {_ends(ended, LEAVING)} |",
            f"| memory of the server | {one['memory_before_mib']} MiB before, {one['memory_most_mib']} MiB at most |",
        ]
    behind = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in left.items())
    again, stop = found["restart"], found["stop"]
    when = "while they asked" if again["killed_while_asked"] else "when all had been answered"
    return [
        *told,
        f"| left behind | {behind} |",
        f"| killed {when}, and started again | {found['clients']} clients of `sapwood.remote`: {_counts(again['outcomes'])} |",
        f"| told to stop while {sum(stop['outcomes'].values())} stream | {_counts(stop['outcomes'])}; "
        f"asked afterwards: {stop['asked_afterwards']}; ended with status {stop['status']} |",
        "",
        f"{found['model']}, answers of {found['tokens']} tokens, {found['different_answers']} of them different, commit {found['commit']}.",
    ]


def _ends(outcomes: Mapping[str, Mapping[str, int]], kinds: tuple[str, ...]) -> str:
    """How the clients of some kinds ended."""
    counts: dict[str, int] = {}
    for kind in kinds:
        for end, count in outcomes.get(kind, {}).items():
            counts[end] = counts.get(end, 0) + count
    return _counts(counts)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {end}" for end, count in counts.items() if count)


def main() -> None:
    """Write the lines into the page."""
    write_blocks(PAGE, MODULE, {"measured": lines(result_of("serve-load"))})


if __name__ == "__main__":
    main()
