"""`docs/real-runs.md` says what the summaries of the runs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
PAGE = " ".join((DOCS / "real-runs.md").read_text().replace("\n> ", " ").split())


def summary(name: str) -> dict[str, Any]:
    found = json.loads((DOCS / "results" / f"{name}.json").read_text())
    assert found["command"] in PAGE
    return dict(found)


def test_function_calling() -> None:
    found = summary("bfcl-decide")
    assert found["answer"] == "yes"
    assert f"{found['items']} items" in PAGE
    assert found["text"].partition(". Measured")[0] in PAGE
    first = {}
    for point in found["pilot"]:
        first.setdefault(point["rows"], round(100 * point["rate"]))
    assert f"reached {', '.join(str(first[n]) for n in (50, 100, 200))} and {first[400]} %" in PAGE
    assert len(found["pilot"]) == 5
    assert f"another 50 rows {round(100 * found['pilot'][-1]['rate'])} %" in PAGE


def test_the_quick_start() -> None:
    found = summary("quickstart")
    assert found["decision"] == "better"
    for arm, rate in found["arms"].items():
        assert f"{100 * rate:.1f} %" in PAGE[PAGE.index(arm) : PAGE.index("## Intents")]
    low, high = found["interval"]
    assert f"+{found['difference']:.1f} points [{low:.1f}, {high:.1f}]" in PAGE
    assert f"{found['steps']} steps" in PAGE
    assert f"{found['held_out']} items" in PAGE
    assert found["got_worse"] == 0
    held_out, text = (found["bits_per_token"][kind] for kind in ("held-out answers", "general text"))
    assert f"from {held_out['before']['mean']:.2f} to {held_out['after']['mean']:.2f} bits a token" in PAGE
    change = text["change"]
    words = (
        f"{text['before']['mean']:.2f} to {text['after']['mean']:.2f} ({change['mean']:.2f} [{change['low']:.2f}, {change['high']:+.2f}])"
    )
    assert words.replace("-", "−") in PAGE


def test_intents() -> None:
    found = summary("intents")
    assert found["decision"] == "better"
    for arm, rate in found["arms"].items():
        row = f"| **{arm}** | **{100 * rate:.1f} %** |" if arm == "tuned" else f"| {arm} | {100 * rate:.1f} % |"
        assert row in PAGE
    low, high = found["interval"]
    assert f"+{found['difference']:.1f} points [{low:.1f}, {high:.1f}]" in PAGE
    assert f"{found['got_worse']} items got worse" in PAGE
    text = found["bits_per_token"]["general text"]
    assert f"from {text['before']['mean']:.2f} to {text['after']['mean']:.2f} bits" in PAGE
    change = text["change"]
    assert f"(+{change['mean']:.2f} [+{change['low']:.2f}, +{change['high']:.2f}])" in PAGE


def test_where_it_should_not_be_done() -> None:
    found = summary("five-intents-decide")
    assert found["answer"] == "no"
    assert found["text"].partition(". Use")[0] in PAGE
    assert found["pilot"] == []
    assert found["arms"]["plain prompt"]["rate"] == 0
