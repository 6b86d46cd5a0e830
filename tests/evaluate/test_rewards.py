"""Rewards: what they give, what their failures become, and the tasks of reasoning-gym with their verifiers."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from sapwood.errors import ConfigError
from sapwood.evaluate.gym import ASKED_AT_ONCE, ENTRY, SEED_APART, gym_items, verified
from sapwood.evaluate.rewards import Reward, ends_thought, judge_by, reward_named, shorter_than
from sapwood.evaluate.scorers import number
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, Rewarded

ITEM = Item(Conversation((Message("user", "1 + 1?"),)), "2", meta={"level": 3})


def answer(text: str, *, prompt: str = "", ended: Ended = Ended.STOP, tokens: int = 4) -> Completion:
    return Completion(Prompt((), (1,), prompt), tuple(range(tokens)), text, ended, error="gone" if ended is Ended.ERROR else None)


def one(*rewards: Reward, completion: Completion | None = None) -> Rewarded:
    return judge_by(rewards)([ITEM], [completion or answer("2")])[0]


def giving(value: Any) -> Reward:
    return Reward("own", function=lambda completions, **_: value)


def test_weights_add_up_and_the_first_says_what_is_solved() -> None:
    found = one(Reward("right", number(), weight=2.0), Reward("own", function=lambda completions, **_: [0.5], weight=-1.0))
    assert found == Rewarded(1.5, {"right": 1.0, "own": 0.5}, True)
    assert one(Reward("right", number()), completion=answer("3")).solved is False


def test_a_failed_answer_is_given_to_no_reward() -> None:
    found = one(giving([1.0]), completion=answer("", ended=Ended.ERROR))
    assert found.total is None
    assert "gone" in found.notes[0]


def test_what_judges_nothing_is_no_zero() -> None:
    found = one(Reward("right", number()), giving([None]))
    assert (found.total, found.parts["own"]) == (1.0, None)
    for value in ([math.nan], [math.inf], ["1"], [[1]], 3, [1.0, 2.0]):
        assert one(giving(value)).total is None, value


def test_asynchronous_rewards_also_where_a_loop_is_running() -> None:
    async def reward(completions: list[Any], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [0.25]

    async def notebook() -> Rewarded:
        return one(Reward("own", function=reward))

    assert one(Reward("own", function=reward)).total == 0.25
    assert asyncio.run(notebook()).total == 0.25


def test_functions_see_what_trl_shows_them() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, **columns)
        return [0.0]

    one(Reward("own", function=reward))
    assert seen["prompts"] == [[{"role": "user", "content": "1 + 1?"}]]
    assert seen["completions"] == [[{"role": "assistant", "content": "2"}]]
    assert seen["ids"] == [[0, 1, 2, 3]]
    assert seen["level"] == [3]
    assert seen["reference"] == ["2"]
    one(Reward("own", function=reward, conversational=False))
    assert seen["completions"] == ["2"]


@pytest.mark.parametrize(
    ("text", "prompt", "value"),
    [
        ("<think>a</think>2", "", 1),
        ("a</think>2", "…<think>\n", 1),
        ("<think>a</think>2", "…<think>\n", 0),
        ("a</think>2", "", 0),
        ("<think>a</think>", "", 0),
        ("<think>a", "", 0),
        ("<think>a</think>b</think>2", "", 0),
        ("2", "", 0),
    ],
)
def test_format_in_either_style_of_template(text: str, prompt: str, value: float) -> None:
    assert ends_thought()(ITEM, answer(text, prompt=prompt)).value == value


def test_length_is_counted_in_tokens() -> None:
    reward = shorter_than(10, 2)
    values = [reward(ITEM, answer("a very long text of one token", tokens=tokens)).value for tokens in (1, 2, 6, 10, 40)]
    assert values == [1.0, 1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ConfigError, match="falls from 5 to 5"):
        shorter_than(5, 5)


def test_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def batch(completions, **columns):\n    return [1.0 for _ in completions]\n\n\ndef single(item, completion):\n    return 0.5\n"
    )
    assert reward_named("number*0.5", {}).weight == 0.5
    assert reward_named("gym*2", {"gym": Reward("gym", number())}).weight == 2
    assert reward_named(f"{tmp_path / 'mine.py'}:batch*2", {}).function is not None
    assert one(reward_named(f"{tmp_path / 'mine.py'}:single", {})).total == 0.5
    for bad, words in (
        ("nmber", "Did you mean 'number'"),
        ("number*x", "no weight"),
        ("tokens:a", "LEAST-MOST"),
        ("tokens:9-2", "falls from"),
    ):
        with pytest.raises(ConfigError, match=words):
            reward_named(bad, {})
    with pytest.raises(ConfigError, match="a name of its own"):
        judge_by([giving([1]), giving([1])])
    with pytest.raises(ConfigError, match="no scorer, function or batch, or several of them"):
        Reward("nothing")


SUMS = {"min_terms": 2, "max_terms": 3, "max_digits": 2}


def test_instances_differ_from_each_other_and_from_those_that_judge() -> None:
    test = gym_items("chain_sum", 40, seed=1, settings=SUMS)
    train = gym_items("chain_sum", 150, seed=2, settings=SUMS, exclude=test, instruction="Think.")
    questions = [item.meta[ENTRY]["question"] for item in (*test, *train)]
    assert len(set(questions)) == 190
    assert train[0].conversation.messages[0].content.endswith("\nThink.")
    again = gym_items("chain_sum", 40, seed=1, settings=SUMS)
    assert [item.id for item in again] == [item.id for item in test]


def test_the_verifier_reads_the_number_behind_the_thought() -> None:
    item = gym_items("chain_sum", 1, seed=1, settings=SUMS)[0]
    score = verified("chain_sum", SUMS)
    right = item.reference
    for text, value in (
        (right, 1),
        (f"<think>7</think>The result is {right}.", 1),
        (f"<think>{right}</think>{int(right) + 1}", 0),
        ("no", 0),
    ):
        assert score(item, answer(text)).value == value, text


def test_tasks_and_settings_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'chain_sum'"):
        gym_items("chain_sun", 1, seed=0)
    with pytest.raises(ConfigError, match="does not take these settings"):
        gym_items("chain_sum", 1, seed=0, settings={"max_trems": 2})
    with pytest.raises(ConfigError, match="Ask for fewer"):
        gym_items("chain_sum", 500, seed=0, settings={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})


@pytest.mark.parametrize("seed", [0, 1, 4, 5, 2**32, 2**63 - 1, -1])
def test_every_seed_is_one_that_a_task_takes(seed: int) -> None:
    """`pool_matrix` draws by numpy, which takes 32 bits. Seeds up to 4 give what they always gave."""
    items = gym_items("pool_matrix", 3, seed=seed)
    assert [item.id for item in gym_items("pool_matrix", 3, seed=seed)] == [item.id for item in items]
    if 0 <= seed < 5:
        plain = reasoning_gym.create_dataset("pool_matrix", seed=seed * SEED_APART, size=ASKED_AT_ONCE)
        assert items[0].meta[ENTRY]["question"] == plain[0]["question"]
    else:
        assert items[0].id != gym_items("pool_matrix", 1, seed=1)[0].id
