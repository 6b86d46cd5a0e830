"""IFEval's rules: one answer that follows each, one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.evaluate.instructions import RULES, instructions
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["sky", "sea"]}, "Sky and sea", "the sky and seas"),
    "keywords:forbidden_words": ({"forbidden_words": ["sky"]}, "skyline", "the SKY"),
    "keywords:frequency": ({"keyword": "a", "frequency": 2, "relation": "at least"}, "a b a", "a b"),
    "keywords:letter_frequency": ({"letter": "a", "let_frequency": 2, "let_relation": "less than"}, "A b", "a A"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "a\n\nSo, b",
        "a\n\nb so",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] [b]", "[a]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "bye. p.s. more", "bye"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "no"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and **b**", "*a*"),
    "detectable_format:multiple_sections": ({"section_spliter": "Part", "num_sections": 2}, "Part 1 a Part 2 b", "Part 1"),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "a: 1"),
    "detectable_format:title": ({}, "<<A tale>>\nonce", "<<>>\nonce"),
    "combination:two_responses": ({}, "a ****** b", "a ****** a"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it"}, "say it. It.", "It. Say it"),
    "startend:end_checker": ({"end_phrase": "the end"}, "so. The end", "the end."),
    "startend:quotation": ({}, '"a"', '"a'),
    "change_case:english_capital": ({}, "LOUD 1", "Loud"),
    "change_case:english_lowercase": ({}, "quiet", "Quiet"),
    "change_case:capital_word_frequency": ({"capital_frequency": 1, "capital_relation": "at least"}, "so LOUD", "so"),
    "punctuation:no_comma": ({}, "a b", "a, b"),
}


def value(kinds: list[str], kwargs: list[dict[str, Any]], text: str) -> float | None:
    item = Item(Conversation((Message("user", "?"),)), {"kinds": kinds, "kwargs": kwargs})
    return instructions()(item, Completion(Prompt((), (), ""), (), text, Ended.STOP)).value


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("kind", CASES)
def test_followed_and_not(kind: str) -> None:
    given, right, wrong = CASES[kind]
    assert value([kind], [given], right) == 1
    assert value([kind], [given], wrong) == 0
    assert value([kind], [given], "") == 0


def test_several_and_unknown_ones() -> None:
    kinds, kwargs = ["punctuation:no_comma", "change_case:english_lowercase"], [{}, {}]
    assert value(kinds, kwargs, "all good") == 1
    assert value(kinds, kwargs, "Not, good") == 0
    assert value([*kinds, "language:response_language"], [*kwargs, {"language": "de"}], "gut") is None
