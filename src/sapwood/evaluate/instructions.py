"""Instructions that a rule can check, by IFEval's names (Zhou et al. 2023, arXiv:2311.07911), in our own words.

In: `{"kinds": [...], "kwargs": [...]}` and an answer. Out: 1 where all instructions that a rule here can check were followed. A kind
that is not known here gives no value, never a 0. Left out on purpose: kinds that need a language detector or a sentence
splitter, and IFBench's own kinds, which its package checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from sapwood.evaluate.scorers import Scorer, guarded, spoken
from sapwood.records import Completion, Item, Score

Rule = Callable[[str, Mapping[str, Any]], bool]


def instructions() -> Scorer:
    """1 where every instruction was followed (IFEval's "prompt-level strict"); the explanation names those that were not."""

    def score(item: Item, completion: Completion) -> Score:
        kinds, kwargs = item.reference["kinds"], item.reference["kwargs"]
        unknown = [kind for kind in kinds if kind not in RULES]
        if unknown:
            return Score(None, None, f"no rule here for {', '.join(unknown)}")
        text = spoken(completion)
        broken = [kind for kind, given in zip(kinds, kwargs, strict=True) if not (text.strip() and RULES[kind](text, given or {}))]
        return Score(float(not broken), None, f"not followed: {', '.join(broken)}" if broken else "")

    return guarded(score)


def _compared(found: int, wanted: int, relation: str | None) -> bool:
    return found < wanted if relation == "less than" else found >= wanted


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _occurs(word: str, text: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def _json(text: str) -> bool:
    bare = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        orjson.loads(bare)
    except orjson.JSONDecodeError:
        return False
    return True


def _paragraphs(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part for part in re.split(r"\s?\*\*\*\s?", text) if part.strip()]
    return len(parts) == int(given["num_paragraphs"])


def _nth_paragraph(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(parts) != given["num_paragraphs"] or given["nth_paragraph"] > len(parts):
        return False
    first = re.sub(r"^\W+|\W+$", "", parts[given["nth_paragraph"] - 1].split()[0])
    return first.casefold() == str(given["first_word"]).casefold()


def _sections(text: str, given: Mapping[str, Any]) -> bool:
    return len(re.findall(rf"\b{re.escape(given['section_spliter'])}\s?\d+", text)) >= int(given["num_sections"])


def _two_answers(text: str, given: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _capital_words(text: str, given: Mapping[str, Any]) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[^\W\d_]+", text))
    return _compared(count, given["capital_frequency"], given.get("capital_relation"))


RULES: dict[str, Rule] = {
    "keywords:existence": lambda text, given: all(_occurs(word, text) for word in given["keywords"]),
    "keywords:forbidden_words": lambda text, given: not any(_occurs(word, text) for word in given["forbidden_words"]),
    "keywords:frequency": lambda text, given: _compared(_occurs(given["keyword"], text), given["frequency"], given.get("relation")),
    "keywords:letter_frequency": lambda text, given: _compared(
        text.casefold().count(given["letter"].casefold()), given["let_frequency"], given.get("let_relation")
    ),
    "length_constraints:number_words": lambda text, given: _compared(len(_words(text)), given["num_words"], given.get("relation")),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda text, given: len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"],
    "detectable_content:postscript": lambda text, given: str(given["postscript_marker"]).casefold() in text.casefold(),
    "detectable_format:number_bullet_lists": lambda text, given: (
        len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S", text, re.MULTILINE)) == given["num_bullets"]
    ),
    "detectable_format:constrained_response": lambda text, given: any(
        option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "detectable_format:number_highlighted_sections": lambda text, given: (
        len(re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", text)) >= given["num_highlights"]
    ),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": lambda text, given: _json(text),
    "detectable_format:title": lambda text, given: bool(re.search(r"<<[^\n<>]*\S[^\n<>]*>>", text)),
    "combination:two_responses": _two_answers,
    "combination:repeat_prompt": lambda text, given: text.strip().casefold().startswith(str(given["prompt_to_repeat"]).strip().casefold()),
    "startend:end_checker": lambda text, given: text.strip().strip('"').casefold().endswith(str(given["end_phrase"]).strip().casefold()),
    "startend:quotation": lambda text, given: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:english_capital": lambda text, given: text.isupper(),
    "change_case:english_lowercase": lambda text, given: text.islower(),
    "change_case:capital_word_frequency": _capital_words,
    "punctuation:no_comma": lambda text, given: "," not in text,
}
"""IFEval's kind → whether an answer follows it."""
