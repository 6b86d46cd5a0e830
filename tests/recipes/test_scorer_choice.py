"""Which scorer a name stands for, and what is said about a wrong name."""

from __future__ import annotations

import pytest

from sapwood.errors import ConfigError
from sapwood.recipes.arms import EvalConfig, scorer_for
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt

ITEM = Item(Conversation((Message("user", "how much is six times seven?"),)), "42")


def value(scorer: str, text: str) -> float | None:
    guess = scorer_for(EvalConfig(scorer=scorer), [ITEM] * 20)
    assert guess.scorer is not None
    return guess.scorer(ITEM, Completion(Prompt((), (), ""), (), text, Ended.STOP)).value


@pytest.mark.parametrize(
    ("scorer", "right", "wrong"),
    [
        ("auto", "It is 42.", "It is 43."),
        ("number", "so 42", "so 42.5"),
        ("exact", "42", "42!"),
        ("set-f1", "42", "41"),
        (r"regex:answer: (\d+)", "answer: 42", "42"),
    ],
)
def test_each_name_judges_in_its_own_way(scorer: str, right: str, wrong: str) -> None:
    assert value(scorer, right) == 1.0
    assert value(scorer, wrong) == 0.0


def test_none_judges_nothing_and_wrong_names_are_refused() -> None:
    assert scorer_for(EvalConfig(scorer="none"), [ITEM]).scorer is None
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        EvalConfig(scorer="exactly")
    with pytest.raises(ConfigError, match="not a regular expression"):
        EvalConfig(scorer="regex:(")
    with pytest.raises(ConfigError, match="--allow-code"):
        EvalConfig(scorer="code-tests")
    assert EvalConfig(scorer="code-tests", allow_code=True).allow_code
