"""What reaches a terminal is text, whatever the data holds."""

from __future__ import annotations

import io

from rich.console import Console

from sapwood.recipes import Screen

HOSTILE = "a\x1b[31mred\x1b[0m \u202egnirts\u2066 b\x07"


def test_text_out_of_data_cannot_steer_the_terminal() -> None:
    file = io.StringIO()
    screen = Screen(file=file)
    screen.say(HOSTILE)
    screen.lines([HOSTILE])
    shown = file.getvalue()
    assert shown.count("gnirts") == 2
    assert not set(shown) & set("\x1b\u202e\u2066\x07")


def test_markup_in_data_stays_text() -> None:
    file = io.StringIO()
    Screen(file=file).say("[bold]not bold[/bold] [/]")
    Screen(file=file).title("[red]model")
    assert "[bold]not bold[/bold] [/]" in file.getvalue()
    assert "[red]model" in file.getvalue()


def test_a_quiet_screen_says_nothing_and_a_log_gets_no_bars() -> None:
    file = io.StringIO()
    quiet = Screen(quiet=True, file=file)
    quiet.say("x")
    assert file.getvalue() == ""
    with Screen(file=file).progress("work") as advance:
        advance(1, 2)
    assert file.getvalue() == ""


def test_a_bar_counts_only_where_something_can_be_counted() -> None:
    screen = Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with screen.progress("measuring"):
        pass
    assert "measuring" in shown(screen)
    assert "0/" not in shown(screen)
    with screen.progress("asking") as advance:
        advance(1_000, 2_000)
    assert "1,000/2,000" in shown(screen)


def shown(screen: Screen) -> str:
    """All that the screen's terminal was sent."""
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue()
