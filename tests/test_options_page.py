"""docs/options.md is what the dataclasses, the tests of every option and the other tools' names make of it."""

from __future__ import annotations

import re

import pytest

import options_table
from options_table import TOOLS, elsewhere, names_in_wheels, options
from sapwood.config import known_keys
from sapwood.recipes.tune import TuneConfig


def test_the_page_is_what_the_code_says() -> None:
    assert options_table.PAGE.read_text(encoding="utf-8") == options_table.page(), "run: python tests/options_table.py"


def test_every_option_has_a_reason_and_a_sentence() -> None:
    assert set(elsewhere()) == set(known_keys(TuneConfig)), "tests/options.yaml has a line for each option"
    for option in options():
        assert option.text.endswith((".", ")")), option.key
        assert option.elsewhere["why"], option.key
        assert option.changes, option.key
        assert set(option.elsewhere) <= {"why", *TOOLS}, option.key


def test_what_trl_calls_it_is_what_trl_calls_it() -> None:
    known = names_in_wheels()
    for option in options():
        for name in re.split(r", | × ", option.elsewhere.get("trl", "")):
            assert not name or name in known, f"{option.key}: {name}"


@pytest.mark.parametrize("tool", ["axolotl", "llamafactory"])
def test_names_of_other_tools_look_like_names(tool: str) -> None:
    for option in options():
        for name in re.split(r", | × ", option.elsewhere.get(tool, "")):
            assert re.fullmatch(r"[a-z][\w.]*|", name), f"{option.key}: {name}"
