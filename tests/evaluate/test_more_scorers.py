"""Scorers of text, form, mathematics and programs: known answers, and that what cannot be judged is never a 0."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import ConfigError
from sapwood.evaluate import Scorer
from sapwood.evaluate.code_tests import code_tests, program_in
from sapwood.evaluate.maths import maths
from sapwood.evaluate.repeated import distinct_answers, distinct_n, maj_at_k, pass_at_k, pass_hat_k
from sapwood.evaluate.scorer_names import PLAIN, scorer_named, scorer_names
from sapwood.evaluate.structure_scorers import json_fields, json_valid, tagged
from sapwood.evaluate.text_scorers import bleu, chrf, length, refusal, rouge, token_f1
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt


def item(reference: object) -> Item:
    return Item(Conversation((Message("user", "?"),)), reference)


def said(text: str, prompt: str = "", message: Message | None = None) -> Completion:
    return Completion(Prompt((), (), prompt), (), text, Ended.STOP, message=message)


def value(scorer: Scorer, reference: object, text: str) -> float | None:
    return scorer(item(reference), said(text)).value


def test_word_f1() -> None:
    assert value(token_f1(), "The cat sat.", "a cat sat") == 1
    assert value(token_f1(), "cat sat down", "cat stood") == pytest.approx(2 * 1 / 5)
    assert value(token_f1(), ["dog", "cat"], "cat") == 1
    assert value(token_f1(), "cat cat", "cat") == pytest.approx(2 / 3)
    assert value(token_f1(), "cat", "") == 0


@pytest.mark.parametrize("make", [token_f1, rouge, bleu, chrf])
def test_overlap_is_1_for_the_reference_and_none_without_one(make: object) -> None:
    scorer: Scorer = make()  # type: ignore[operator]
    text = "the quick brown fox jumps over the lazy dog"
    assert value(scorer, text, text) == pytest.approx(1)
    assert value(scorer, ["no such words here", text], text) == pytest.approx(1)
    assert value(scorer, text, "zzz qqq xxx yyy") == pytest.approx(0, abs=0.05)
    for empty in (None, "", "  ", []):
        assert value(scorer, empty, text) is None


def test_rouge_known_answer() -> None:
    # "police kill the gunman" against "police killed the gunman": Lin 2004 §3; stems agree, words agree in 3 of 4
    assert value(rouge("rougeL", stem=False), "police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert value(rouge("rouge2", stem=False), "police killed the gunman", "police kill the gunman") == pytest.approx(1 / 3)
    assert value(rouge(), "police killed the gunman", "police kill the gunman") == 1
    assert value(rouge(), "东京是日本的首都", "东京是日本的首都") is None, "no words that this ROUGE knows: unknown, not wrong"
    with pytest.raises(ConfigError, match="rougeX"):
        rouge("rougeX")  # type: ignore[arg-type]


def test_length() -> None:
    assert value(length(2, 3), None, "one two") == 1
    assert value(length(2, 3), None, "one") == 0
    assert value(length(2), None, "a b c d e f") == 1
    with pytest.raises(ConfigError, match="length"):
        length(3, 2)


def test_refusal() -> None:
    refusals = ["I'm sorry, but I can't help with that.", "I cannot assist with this request.", "As an AI language model, I do not"]
    answers = ["The capital is Paris.", "You can't divide by zero.", "Sorry seems to be the hardest word is a song by Elton John."]
    assert [value(refusal(), None, text) for text in refusals] == [0, 0, 0]
    assert [value(refusal(), None, text) for text in answers] == [1, 1, 1]
    assert [value(refusal(wanted=True), None, text) for text in (*refusals, *answers)] == [1, 1, 1, 0, 0, 0]
    assert value(refusal(), True, refusals[0]) == 1
    assert value(refusal(wanted=True), False, answers[0]) == 1
    assert value(refusal(), None, " ") is None


def test_json_forms() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    assert value(json_valid(), None, '```json\n{"a": 1}\n```') == 1
    assert value(json_valid(), None, "{'a': 1}") == 0
    assert value(json_valid(), None, "12") == 0
    assert value(json_valid(schema), None, '{"age": 3}') == 1
    wrong = json_valid(schema)(item(None), said('{"age": "3"}'))
    assert (wrong.value, wrong.explanation) == (0, "$.age: '3' is not of type 'integer'")
    with pytest.raises(ConfigError, match="not a JSON schema"):
        json_valid({"type": "objekt"})


def test_json_fields() -> None:
    reference = {"name": "Ann", "tags": ["a", "b"], "address": {"zip": 10115}, "ok": True}
    assert value(json_fields(), reference, json.dumps(reference)) == 1
    assert value(json_fields(), json.dumps(reference), json.dumps({**reference, "address": {"zip": 10115.0}})) == 1
    assert value(json_fields(), reference, json.dumps({**reference, "ok": 1})) == pytest.approx(4 / 5)
    assert value(json_fields(), reference, json.dumps({**reference, "more": None})) == pytest.approx(5 / 6)
    assert value(json_fields(), reference, "{}") == pytest.approx(0, abs=0.2)
    assert value(json_fields(), reference, "sorry") == 0
    assert value(json_fields(), "no json", "{}") is None
    assert value(json_fields(), None, "{}") is None
    score = json_fields()(item(reference), said('{"name": "Bob", "tags": ["a"], "address": {"zip": 10115}, "ok": true}'))
    assert score.explanation == "$.name is 'Bob', expected 'Ann'; $.tags[1] is missing"


def test_tags_with_a_prefilled_thought() -> None:
    good = "<think>2 and 2</think>\n<answer>4</answer>"
    scorer = tagged()
    assert scorer(item(None), said(good)).answer == "4"
    assert value(scorer, None, good) == 1
    assert scorer(item(None), said(good.removeprefix("<think>"), prompt="assistant\n<think>\n")).value == 1
    assert scorer(item(None), said(good.removeprefix("<think>"))).value == 0, "without a prefill the opening tag is missing"
    apart = Message("assistant", "<answer>4</answer>", reasoning="2 and 2")
    assert scorer(item(None), said("<answer>4</answer>", message=apart)).value == 1
    for bad in (
        "4",
        good + " bye",
        good + good,
        "<answer>4</answer><think>x</think>",
        "<think></think><answer>4</answer>",
        "<think>x</think>",
    ):
        assert value(scorer, None, bad) == 0, bad
    with pytest.raises(ConfigError, match="tag"):
        tagged("a b")


def test_maths() -> None:
    same = [
        ("1/2", "so it is $0.5$"),
        ("\\frac{1}{2}", "\\boxed{1/2}"),
        ("x+1", "$1+x$"),
        ("$50\\%$", "0.5"),
        ("1,234", "#### 1234"),
        (42, "42"),
    ]
    for reference, text in same:
        assert value(maths(), reference, text) == 1, (reference, text)
    assert value(maths(), "42", "it is 41") == 0
    assert value(maths(), "42", "no idea at all") == 0
    assert value(maths(), "no number here", "42") is None
    assert value(maths(), ["1", "2"], "2") == 1


def test_programs_are_found_in_answers() -> None:
    prompt = "import math\n\ndef area(r):\n    '''Of a disc.'''\n"
    whole = "def area(r):\n    return math.pi * r * r"
    for text in (
        whole,
        f"Sure!\n```python\n{whole}\n```\nHope it helps",
        f"```\nprint(1)\n```\n```py\n{whole}\n```\n```\nprint(2)\n```",
        f"```python\n{whole}",
    ):
        program = program_in(text, "area", prompt)
        namespace: dict[str, object] = {}
        exec(program, namespace)  # noqa: S102  text of this test
        assert namespace["area"](1) == pytest.approx(3.14159, abs=1e-4), program  # type: ignore[operator]
    assert program_in("    return 1", "area", prompt) == prompt + "    return 1"


def test_code_by_tests() -> None:
    reference = {"prompt": "def twice(x):\n", "entry_point": "twice", "tests": "assert twice(2) == 4"}
    scorer = code_tests()
    assert value(scorer, reference, "    return 2 * x") == 1
    assert value(scorer, reference, "```python\ndef twice(x):\n    return x + x\n```") == 1
    wrong = scorer(item(reference), said("    return x"))
    assert (wrong.value, wrong.explanation) == (0, "failed: AssertionError: ")
    assert value(scorer, "assert f() == 1", "def f():\n    return 1") == 1
    assert value(scorer, {"prompt": "x"}, "    return x") is None
    assert scorer(item(reference), replace(said(""), ended=Ended.ERROR, error="gone")).value is None


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text('{"type": "object"}')
    Path("mine.py").write_text(
        "import math\n"
        "def polite(item, completion):\n    return 'please' in completion.text\n"
        "def odd(item, completion):\n    return 7\n"
        "def breaks(item, completion):\n    return 1 / 0\n"
        "def silent(item, completion):\n    return None\n"
        "def texts(item, completion):\n    return 'yes'\n"
    )
    for name in (
        *PLAIN,
        "regex:a+",
        "rouge:rouge2",
        "length:1-3",
        "length:1-",
        "json-schema:schema.json",
        "tags:thought,reply",
        "mine.py:polite",
    ):
        assert callable(scorer_named(name)), name
    assert value(scorer_named("mine.py:polite"), None, "please do") == 1
    assert value(scorer_named("mine.py:polite"), None, "do") == 0
    for name, why in (("odd", "lies in 0..1"), ("breaks", "ZeroDivisionError"), ("silent", "gave no value"), ("texts", "gave str")):
        score = scorer_named(f"mine.py:{name}")(item(None), said("x"))
        assert score.value is None
        assert why in score.explanation
    bad = {
        "exakt": "Did you mean 'exact'",
        "length:a-b": "least-most",
        "json-schema:none.json": "no such file",
        "mine.py:polit": "Did you mean 'polite'",
        "gone.py:x": "no file",
        "code-tests": "--allow-code",
        "regex:(": "regular expression",
        "rouge:rouge9": "rouge9",
    }
    for name, why in bad.items():
        with pytest.raises(ConfigError, match=why):
            scorer_named(name)
    Path("broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(ConfigError, match="could not be run"):
        scorer_named("broken.py:x")
    assert "regex:PATTERN" in scorer_names()


def test_an_item_without_a_reference_is_never_wrong() -> None:
    needs_none = {"json", "tags", "answers", "refuses"}
    for name in PLAIN:
        assert (scorer_named(name)(item(None), said("x")).value is not None) == (name in needs_none), name


def test_no_scorer_scores_a_failed_completion() -> None:
    for name in PLAIN:
        failed = replace(said("Yes"), ended=Ended.ERROR, error="out of memory")
        assert scorer_named(name)(item("Yes"), failed).value is None, name


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.lists(st.booleans(), min_size=n, max_size=n), st.integers(1, n))))
def test_pass_at_k_by_enumeration(case: tuple[list[bool], int]) -> None:
    right, k = case
    draws = list(itertools.combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_hat_k(len(right), sum(right), k) == pytest.approx(sum(map(all, draws)) / len(draws))


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7), st.data())
def test_maj_at_k_by_enumeration(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    right = [answer == "a" for answer in answers]
    total, draws = 0.0, list(itertools.combinations(answers, k))
    for draw in draws:
        votes = [answer for answer in draw if answer is not None]
        most = max((votes.count(answer) for answer in votes), default=0)
        leaders = {answer for answer in votes if votes.count(answer) == most}
        total += ("a" in leaders) / len(leaders) if leaders else 0
    assert maj_at_k(answers, right, k) == pytest.approx(total / len(draws))


def test_pass_at_5_of_10_as_measured() -> None:
    """p = 0.2: the truth is 1 − 0.8⁵ = 0.672, and the mean over binomial counts is exactly that."""
    from scipy.stats import binom

    mean = sum(binom.pmf(c, 10, 0.2) * pass_at_k(10, c, 5) for c in range(11))
    assert mean == pytest.approx(1 - 0.8**5, abs=1e-12)
    with pytest.raises(ConfigError, match="k must lie in"):
        pass_at_k(3, 1, 4)


def test_diversity() -> None:
    assert distinct_n(["a b c", "a b c"]) == 0.5
    assert distinct_n(["a"]) == 1
    assert distinct_answers(["4", "4", "5", "4"]) == 0.5
