"""`sapwood decide FILES | RUN …`"""

from __future__ import annotations

from rich.table import Table

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.evaluate.decision import dollars
from sapwood.recipes.decide import DecideResult, config_for, decide
from sapwood.recipes.screen import Screen

DESCRIPTION = (
    "Should you fine-tune, and on how many rows? Asks the arms that need no tuning, trains a small pilot, and answers yes, no or not "
    "yet. Give files (JSON Lines, CSV, Parquet, …), or the directory of a decision to go on with it."
)


def run(words: list[str]) -> None:
    """Parse, decide, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(config_for(names), "decide", flags, DESCRIPTION)
    screen = screen_for(json)
    result = decide(config, screen=screen)
    show(result, screen)
    json.write(result.summary())


def show(result: DecideResult, screen: Screen) -> None:
    """The answer, what the arms reached and cost, and where the page is."""
    screen.title("Should you fine-tune?")
    decision, record = result.decision, result.record
    style = {"yes": "bold green", "no": "bold red"}.get(decision.answer, "bold yellow")
    screen.say(decision.text, style)
    for reason in decision.reasons:
        mark = {True: "holds", False: "does not hold", None: "open"}[reason.holds]
        screen.say(f"{reason.name} ({mark}): {reason.line}")
    costs = record.get("costs", {})
    if any(cost["dollars_a_thousand"] is not None for cost in costs.values()):
        table = Table("arm", "right", "1,000 queries", "1,000 right answers", box=None, pad_edge=False)
        for name, cost in costs.items():
            rate, thousand, right = cost["rate"], cost["dollars_a_thousand"], cost["dollars_a_right_answer"]
            table.add_row(
                name,
                "–" if rate is None else f"{rate:.0%}",
                "–" if thousand is None else dollars(thousand),
                "–" if right is None else dollars(1000 * right),
            )
        screen.show(table)
    screen.lines([f"Report       {result.report}"])
    if decision.answer == "yes":
        screen.lines(["Next         sapwood sft, with the same files and options"])
