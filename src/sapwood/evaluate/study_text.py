"""A study in Markdown, short enough for a pull request: its record in, a text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]
SIGNS = {"met": "✓ met", "missed": "✗ missed", "open": "? open"}


def markdown(record: Record) -> str:
    """Answer, conditions, arms, slices, errors, costs, the plan, and what weakens it."""
    parts = [f"# {_safe(record['name'])}: {record['answer']}", _safe(record["line"])]
    if record["checks"]:
        rows = [[check["name"], SIGNS[check["outcome"]], check["text"], check["more"] or ""] for check in record["checks"]]
        parts += ["## Conditions", _table(["condition", "", "found", "items more"], rows)]
    parts += ["## Arms", _table(_ARM_HEAD, [_arm(arm, record) for arm in record["arms"]])]
    if record["several"]:
        k = record["several"][0]["k"]
        rows = [
            [
                one["arm"],
                *(f"{percent(one[key]['rate'])} ({interval(one[key])})" for key in ("any", "all", "majority")),
                percent(one["distinct"]),
            ]
            for one in record["several"]
        ]
        head = ["arm", f"one right (pass@{k})", "all right", f"commonest right (maj@{k})", "different answers"]
        parts += [f"## {k} answers to each item", _table(head, rows)]
    if record["as_logged"]:
        one = record["as_logged"]
        parts.append(
            f"Over the queries as they were logged ({one['n']} items that stand for {one['queries']:,.0f}): "
            f"{percent(one['before'])} before, {percent(one['after'])} after, {points(one)} points. The table weighs each item alike."
        )
    if record["slices"]:
        rows = [_slice(one) for one in record["slices"]]
        parts += ["## Slices", _table(["slice", "items", "before", "after", "difference", "adjusted p", ""], rows)]
    if record["errors"]:
        arms = [arm["name"] for arm in record["arms"]]
        errors = [[one["name"], f"{one['severity']:g}", *(_count(one["arms"].get(arm)) for arm in arms)] for one in record["errors"]]
        parts += ["## Errors", _table(["error", "severity", *arms], errors)]
    if record["break_even"]:
        evens = [[arm, _number(one["queries"]), _number(one["saved_a_thousand"])] for arm, one in record["break_even"].items()]
        parts += ["## Break-even", _table(["instead of", "after queries", "saved a thousand"], evens)]
    plan = record["plan"]
    when = "before any answer" if plan["before_any_answer"] else "AFTER answers were seen"
    parts += [
        "## Plan",
        f"Declared {plan['declared']}, {when}, as `{plan['hash']}`.",
        "\n".join(f"- {_safe(line)}" for line in plan["lines"]),
    ]
    weak = [*record["caveats"], *record["notes"]]
    if weak:
        parts += ["## What weakens it", "\n".join(f"- {_safe(line)}" for line in weak)]
    return "\n\n".join(parts) + "\n"


_ARM_HEAD = ["arm", "score", "95 % interval", "candidate against it", "won / lost", "not scored", "a thousand queries", "a right answer"]


def _arm(arm: Record, record: Record) -> list[str]:
    against, cost = arm["against"], arm["cost"]
    name = f"**{arm['name']}**" if arm["name"] == record["candidate"] else arm["name"]
    won = f"{against['wins']} / {against['losses']}" if against else ""
    return [
        name,
        percent(arm["rate"]),
        interval(arm),
        points(against),
        won,
        str(arm["unscored"] or ""),
        _number(cost["dollars_a_thousand"]),
        _number(cost["dollars_a_right_answer"]),
    ]


def _slice(one: Record) -> list[str]:
    name = one["name"] if one["declared"] else f"{one['name']} (not declared)"
    adjusted = "" if one["adjusted"] is None else f"{one['adjusted']:.3f}"
    return [name, str(one["items"]), percent(one["before"]["rate"]), percent(one["after"]["rate"]), points(one["difference"]), adjusted,
            "holds among all" if one["marked"] else ""]  # fmt: skip


def percent(share: float | None) -> str:
    """A share, or a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def interval(found: Record) -> str:
    """The ends of an interval of a share."""
    return "–" if found["low"] is None else f"{100 * found['low']:.1f} – {100 * found['high']:.1f} %"


def points(found: Record | None) -> str:
    """A difference with its interval, in points."""
    if found is None:
        return "–"
    mean, low, high = (f"{100 * found[key]:+.1f}".replace("-", "−") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _count(found: Record | None) -> str:
    if found is None or not found["of"]:
        return "not looked for"
    return f"{found['count']} of {found['of']}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_safe(str(cell)).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _safe(text: str) -> str:
    """One line, without markup of HTML."""
    return " ".join(str(text).split()).replace("<", "&lt;")
