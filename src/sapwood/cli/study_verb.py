"""`sapwood study RUN … | FILES`"""

from __future__ import annotations

import sys

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.config import to_dict
from sapwood.evaluate.shipping import EXIT_CODES
from sapwood.evaluate.study_files import lines_of
from sapwood.recipes.study import config_for, study
from sapwood.run import read_json

DESCRIPTION = (
    "Any number of ways to answer the same items, judged by a plan that is declared before: prompts, examples, runs and checkpoints, a "
    "hosted model. Ends with 0 where it may be shipped, 3 where not, 4 where these items cannot tell."
)


def run(words: list[str]) -> None:
    """Parse, study, show; the answer is the exit code."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(config_for(names), "study", flags, DESCRIPTION)
    screen = screen_for(json)
    result = study(config, screen=screen)
    record = read_json(result.path / "ship.json") if result.shipping is not None else {}
    if record:
        screen.title("Conditions")
        screen.lines(lines_of(record))
    screen.title("Result")
    screen.say(result.line, "bold")
    if not config.plan_only:
        screen.lines([f"Report       {result.report}"])
    screen.say(f"Next         sapwood study {result.path}{'' if config.plan_only else '  (asks nothing twice)'}", "dim")
    plan = {"hash": result.declared.plan.hash, "declared": result.declared.when, "lines": result.declared.plan.lines_for_people()}
    json.write({"line": result.line, "path": str(result.path), "plan": plan, **record, "config": to_dict(config)})
    if result.shipping is not None and (code := EXIT_CODES[result.shipping.answer]):
        sys.exit(code)
