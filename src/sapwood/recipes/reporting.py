"""The page of a run that learns from rewards or preferences, kept up with it: at each evaluation, at its end, and where it is stopped.

In: an open run. Out: `report.html` in its folder. A page that cannot be written is said and ends nothing: the records are in the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sapwood.errors import SapwoodError
from sapwood.evaluate.report import write_report
from sapwood.recipes.screen import Screen
from sapwood.run import Run


def write_page(run: Run, screen: Screen) -> bool:
    """Write the page of what there is; False where it could not be written, which is said."""
    try:
        write_report(run.path)
    except SapwoodError as error:
        screen.say(f"The report could not be written: {error}", "yellow")
        return False
    return True


@contextmanager
def page_kept(run: Run, screen: Screen) -> Iterator[None]:
    """Whatever ends the block, the run has a page of what it reached. One that made no step and no evaluation has nothing to show."""
    try:
        yield
    except BaseException:
        if (run.path / "metrics.jsonl").is_file() and write_page(run, screen):
            screen.say(f"What it reached: {run.path / 'report.html'}")
        raise
    write_page(run, screen)
