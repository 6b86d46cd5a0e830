"""The page of a run of rewards or preferences: what it says, of whatever became of the run, and that it stays inert and fits a phone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning_runs import dpo_run, dpo_step, greedy, grpo_run, grpo_step, pairs_judged, rollout
from report_browser import Browser, Opened, launched
from report_reading import Page, page_of
from report_runs import HOSTILE
from sapwood.evaluate.grpo_signs import seen_in
from sapwood.evaluate.learning_charts import preference_charts, reward_charts
from sapwood.evaluate.learning_figures import REWARD_FIGURES, about_the_loss
from sapwood.evaluate.preference_signs import preference_signs
from sapwood.evaluate.preference_verdict import preference_verdict
from sapwood.evaluate.report import render_page, write_report
from sapwood.evaluate.report_answers import MOST_STEPS, answers_view, of_the_last_sitting, thought_and_answer
from sapwood.evaluate.report_files import read_run
from sapwood.evaluate.reward_verdict import reward_verdict, values_by_step
from sapwood.run import open_run


def test_a_finished_run_of_rewards_says_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    page = page_of(grpo_run(tmp_path / "grpo-1"))
    for part in (
        "Does it solve more than before? Better",
        "Better: 25.0% → 62.5% of 40 held-out prompts",
        "8 prompts × 8 answers",
        "The loss of the last update was +0.0020, its gradient 0.300. The loss is near 0 by construction",
        "0 in every step, and not drawn: divergence, clipped tokens, unjudged.",
        "Spread within groups",
        "Tokens of an answer",
        "sampling 70.4 %",
        "thought 20 words",
        "answer 20 words",
        "judge: gone words",
        "16 prompts × 8 answers",
        "sapwood distill FILE --start",
        "adapter_config.json",
    ):
        assert part in page.text, part
    assert page.scripts == []
    for tag, attributes in page.tags:
        assert not {"src", "action", "data", "srcset"} & set(attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), (tag, attributes)


def test_a_stopped_run_says_how_far_it_came_and_how_to_go_on(tmp_path: Path) -> None:
    folder = grpo_run(tmp_path / "grpo-1", done=12)
    page = page_of(folder)
    assert "Does it solve more than before? Not finished" in page.text
    assert "So far, at step 10 of 20: 25.0% → 42.5% of 40 held-out prompts" in page.text
    assert "The run was at step 12 of 20 when this page was made" in page.text
    assert f"sapwood grpo {folder}" in page.text
    assert "sapwood export" not in page.text


def test_a_verdict_of_an_earlier_version_is_taken_from_the_evaluations(tmp_path: Path) -> None:
    folder = grpo_run(tmp_path / "grpo-1")
    run = open_run(folder)
    run.write_json("verdict", {"line": "Better: …", "difference": 0.375})
    run.close()
    assert "25.0% → 62.5%" in page_of(folder).text


@pytest.mark.parametrize(("gain", "word"), [(20, "better"), (-10, "worse"), (0, "not shown")])
def test_the_verdict_rests_on_the_interval_of_held_out_prompts(gain: int, word: str) -> None:
    found = reward_verdict(values_by_step([greedy(0, 12), greedy(5, 12 + gain)]), 5)
    assert found.decision == word
    assert found.difference is not None
    assert (found.difference.wins, found.difference.losses) == (max(gain, 0), max(-gain, 0))
    assert found.to_dict()["arms"]["after"]["right"] == 12 + gain
    assert found.line.startswith(word.capitalize())


def test_rewards_beyond_one_have_no_points(tmp_path: Path) -> None:
    seen: dict[int, Any] = {0: [1.0, 2.0, 3.0, None] * 5, 9: [3.0, 4.5, 5.0, 1.0] * 5}
    found = reward_verdict(seen, 9)
    assert found.decision == "better"
    assert "2.000 → 4.167 on 15 held-out prompts" in found.line
    assert {"change", "arms"} <= set(found.to_dict())
    assert "difference" not in found.to_dict()
    folder = grpo_run(tmp_path / "grpo-1")
    run = open_run(folder)
    run.write_json("verdict", found.to_dict())
    run.close()
    page = page_of(folder)
    assert "Does it solve more than before? Better" in page.text
    assert "2.000 → 4.167" in page.text
    assert " points" not in page.text.split("How to read this")[1].split("point")[0]


def test_nothing_held_out_or_nothing_judged_is_said() -> None:
    assert "Nothing was held out" in reward_verdict({}, 5).line
    assert "could be judged both before and after" in reward_verdict({0: [None], 5: [1.0]}, 5).line
    assert "Not evaluated since the beginning" in reward_verdict({0: [1.0]}, 5).line
    assert "Nothing was held out" in preference_verdict({}, 5, votes=False).line
    assert "Not evaluated" in preference_verdict({0: pairs_judged(0, 0.5, 0.7)}, 5, votes=False).line


@pytest.mark.parametrize(
    ("accuracy", "words"), [(0.9, "It learned to prefer: 90%"), (0.1, "It learned the opposite: 10%"), (0.5, "Not shown: 50%")]
)
def test_preferences_are_compared_with_chance(accuracy: float, words: str) -> None:
    found = preference_verdict({0: pairs_judged(0, 0.5, 0.7), 8: pairs_judged(8, accuracy, 0.4)}, 8, votes=False)
    assert words in found.line
    assert "of 60 held-out pairs preferred as people did" in found.line
    assert found.to_dict()["difference"]["mean"] == pytest.approx(accuracy - 0.5)
    assert "votes shared" in preference_verdict({8: pairs_judged(8, accuracy, 0.4)}, 8, votes=True).line
    assert "So far, at step 8 of 9" in preference_verdict({8: pairs_judged(8, accuracy, 0.4)}, 9, votes=True).line


def test_a_run_of_preferences_shows_both_answers_in_nats(tmp_path: Path) -> None:
    page = page_of(dpo_run(tmp_path / "dpo-1"))
    for part in ("Does it prefer what people preferred? Better", "+35 points", "Log-probability of both answers", "Held-out margin"):
        assert part in page.text, part
    records = [dpo_step(step, 20) for step in range(1, 21)]
    chart = next(one for one in preference_charts(records, 0.1) if one.key == "logprobs")
    assert "−20" in chart.markup, "a reward of -1.8 at a β of 0.1 is 18 nats"


def test_charts_that_hold_nothing_are_left_out() -> None:
    records = [grpo_step(step, 5) for step in range(1, 6)]
    keys = {one.key for one in reward_charts(records)}
    assert {"reward", "solved", "spread", "dead", "length", "cut", "entropy", "rewards.format"} <= keys
    assert not keys & {"kl", "clipped", "unjudged"}
    assert "kl" in {one.key for one in reward_charts([{**record, "kl": 0.1} for record in records])}
    (reward,) = (one for one in reward_charts(records) if one.key == "reward")
    assert 'class="band" d="M' in reward.markup
    assert ("band", "± spread within groups") in reward.keys


def test_alarms_say_when_they_were_seen_and_whether_they_still_are(tmp_path: Path) -> None:
    records = [
        grpo_step(step, 40, cut=0.5 if 15 <= step < 25 else 0.0, entropy=0.02 if step > 30 else 1.0, solved=0.2) for step in range(1, 41)
    ]
    seen = {one.sign.kind: one for one in seen_in(records)}
    assert (seen["cut"].first, seen["cut"].still) == (17, False)
    assert 17 < seen["cut"].last < 30
    assert seen["collapse"].still
    page = Page(write_report(_with(tmp_path / "grpo-1", records)).read_text())
    assert "Alarms 2" in page.text
    assert "Collapse from step 35 on" in page.text
    assert "--clip-high 0.28" in page.text


def _with(folder: Path, records: list[dict[str, Any]]) -> Path:
    """The run with these steps instead of its own."""
    grpo_run(folder)
    run = open_run(folder)
    run.replace("metrics", *records)
    run.close()
    return folder


GOOD = {"loss": 0.4, "accuracy": 0.9, "margin": 1.0, "chosen": 0.2, "rejected": -0.8}


@pytest.mark.parametrize(
    ("kind", "last", "evals"),
    [
        ("overfitting", {"accuracy": 0.9}, [(0.5, 0.69), (0.7, 0.5), (0.7, 0.7)]),
        ("by heart", {"accuracy": 1.0}, [(0.5, 0.69), (0.55, 0.68)]),
        ("both fall", {"chosen": -3.0, "rejected": -5.0}, []),
        ("divergence", {"kl": 80.0}, []),
        ("the opposite", {"accuracy": 0.6}, [(0.3, 0.8)]),
        ("stuck", {"margin": 0.001, "loss": 0.69, "chosen": 0.0}, []),
    ],
)
def test_alarms_of_preferences(kind: str, last: dict[str, float], evals: list[tuple[float, float]]) -> None:
    first = {"loss": 0.69, "accuracy": 0.5, "margin": 0.0, "chosen": 0.0, "rejected": 0.0}
    steps = [dpo_step(n, 12, **(first if n <= 6 else {**GOOD, **last})) for n in range(1, 13)]
    judged = [pairs_judged(12 * (place + 1), *one) for place, one in enumerate(evals)]
    assert [sign.kind for sign in preference_signs([*steps, *judged])] == [kind]
    assert preference_signs([*steps[:6], *(dpo_step(n, 12, **GOOD) for n in range(7, 13)), pairs_judged(12, 0.8, 0.4)]) == []
    assert preference_signs(steps[:4]) == []
    before = [pairs_judged(0, 0.1, 0.69), *(dpo_step(n, 12, **{**GOOD, "accuracy": 1.0}) for n in range(1, 13))]
    assert preference_signs(before) == [], "what was held out before step 1 says nothing of training"


def test_the_loss_is_explained_by_its_figures() -> None:
    assert about_the_loss({"loss": -0.0123, "grad_norm": 0.25}) == (
        "loss -0.0123 says little: advantages sum to 0; its gradient 0.250 teaches"
    )
    assert "every group of this step was rewarded alike" in about_the_loss({"loss": 0.0, "grad_norm": 0})
    assert "near 0 by construction" in about_the_loss({"loss": None})
    assert all(figure.about.endswith(".") for figure in REWARD_FIGURES)


def test_what_a_lost_sitting_wrote_is_left_out() -> None:
    lost = [rollout(step, which, "lost") for step in (1, 2, 3, 4) for which in ("best", "worst")]
    again = [rollout(step, which, "kept") for step in (3, 4, 5) for which in ("best", "worst")]
    kept = of_the_last_sitting([*lost, *again])
    assert [(one["step"], "kept" in one["question"]) for one in kept[::2]] == [(1, False), (2, False), (3, True), (4, True), (5, True)]
    killed = [rollout(1, which, "same") for which in ("best", "worst")]
    assert of_the_last_sitting([*killed, *killed]) == killed, "a step that was killed behind its answers is written again"


def test_chosen_steps_are_spread_over_the_run() -> None:
    view = answers_view([rollout(step, "best", "x") for step in range(1, 101)], [])
    steps = [one.step for one in view.steps]
    assert len(steps) == MOST_STEPS
    assert (steps[0], steps[-1]) == (1, 100)
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 5
    assert view.left_out == 100 - MOST_STEPS


@pytest.mark.parametrize(
    ("text", "record", "told"),
    [
        ("<think> a b </think> c", {}, ("a b", "c")),
        ("a b</think>c", {}, ("a b", "c")),
        ("no thought", {}, ("", "no thought")),
        ("<think>without end", {}, ("", "<think>without end")),
        ("raw", {"thought": "t", "said": ""}, ("t", "")),
    ],
)
def test_thought_and_answer_are_told_apart(text: str, record: dict[str, str], told: tuple[str, str]) -> None:
    assert thought_and_answer(text, record) == told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["mean", "low", "number", "rate", "x"]), inner, max_size=3),
    max_leaves=6,
)
RECORD = st.dictionaries(st.sampled_from([*grpo_step(1, 2), *dpo_step(1, 2), *greedy(1, 2), *pairs_judged(1, 0.5, 0.5)]), JSON, max_size=8)


@settings(max_examples=25)
@given(records=st.lists(RECORD, max_size=12), kept=st.lists(st.dictionaries(st.sampled_from([*rollout(1, "best", "")]), JSON)), said=RECORD)
@pytest.mark.parametrize("kind", [grpo_run, dpo_run])
def test_any_json_in_the_known_keys_still_gives_a_page(
    tmp_path_factory: pytest.TempPathFactory, kind: Any, records: Any, kept: Any, said: Any
) -> None:
    files = read_run(kind(tmp_path_factory.mktemp("run") / "run", steps=5, done=5))
    files.verdict.update(said)
    files.preflight.update(said)
    files.rollouts.extend(kept)
    files.metrics.extend({**record, "step": step} for step, record in enumerate(records, 6))
    assert render_page(files).rstrip().endswith("</html>")


@pytest.mark.parametrize("kind", [grpo_run, dpo_run])
def test_a_run_that_only_has_a_config_says_what_is_missing(tmp_path: Path, kind: Any) -> None:
    folder = kind(tmp_path / "run", done=0)
    (folder / "rollouts.jsonl").unlink(missing_ok=True)
    (folder / "metrics.jsonl").unlink()
    page = page_of(folder)
    assert "metrics.jsonl is absent" in page.text
    assert ("rollouts.jsonl is absent" in page.text) == (kind is grpo_run)


def test_hostile_text_never_becomes_markup(tmp_path: Path) -> None:
    harmless, hostile = page_of(grpo_run(tmp_path / "a", text="x")), page_of(grpo_run(tmp_path / "b", text=HOSTILE))
    assert [tag for tag, _ in harmless.tags] == [tag for tag, _ in hostile.tags]
    assert "49" not in [text.strip() for text in hostile.texts], "a template inside a text was run"


# ---- in a browser

browser = launched


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["grpo", "dpo"])
def test_it_fits_the_screen_and_loads_nothing(browser: Browser, tmp_path: Path, kind: str, width: int) -> None:
    folder = grpo_run(tmp_path / "run", text=HOSTILE, kl=0.2) if kind == "grpo" else dpo_run(tmp_path / "run")
    page = Opened(browser, folder, width)
    for summary in page.tab.locator("summary").all():
        if summary.is_visible():
            summary.click()
    assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert page.tab.evaluate("window.hacked") is None
    assert page.tab.locator("script, img, link[rel=stylesheet]").count() == 0
    heights = page.tab.locator(".curve span").evaluate_all("spans => spans.map(span => span.getClientRects()[0].height)")
    assert max(heights) < 30, "a chart's label broke into lines"
    if kind == "grpo":
        first = page.tab.locator(".step").first
        assert first.locator(".excerpt").text_content() == "Step 1"
        assert HOSTILE in (first.locator(".answer.best .thought").first.text_content() or "")
    page.close()
