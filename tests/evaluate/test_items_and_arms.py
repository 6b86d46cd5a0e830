"""Items, the arms that need no model, few-shot, and the running of arms, with a scripted sampler at the seam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.errors import DataError, TemplateError
from sapwood.evaluate import (
    ArmScore,
    bits_change,
    bits_per_token,
    choose_shots,
    exact,
    few_shot_prompt,
    item_records,
    items_from,
    most_common_answer,
    nearest_row,
    pick_scorer,
    run_arm,
    run_free_arm,
    scores_from,
)
from sapwood.records import Completion, Conversation, Ended, Example, Item, Message, Prompt, Row, SamplingParams, Source, ToolCall
from sapwood.run import open_run


class Scripted:
    """A `Sampler` that answers by a function of the messages and counts what it was asked."""

    def __init__(self, answer: Callable[[tuple[Message, ...]], str | None]) -> None:
        self.answer = answer
        self.asked: list[tuple[Message, ...]] = []

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, on_token: object = None, cancelled: object = None
    ) -> list[Completion]:
        completions = []
        for prompt in prompts:
            self.asked.append(prompt.messages)
            text = self.answer(prompt.messages)
            ended = Ended.ERROR if text is None else Ended.STOP
            completions.append(Completion(prompt, (5, 6), text or "", ended, error="too long" if text is None else None))
        return completions


def render(conversation: Conversation) -> Prompt:
    return Prompt(conversation.messages, tuple(range(len(conversation.messages))), "")


def row(question: str, answer: str, system: str | None = "Be brief.", **meta: object) -> Conversation:
    setting = (Message("system", system),) if system else ()
    return Conversation((*setting, Message("user", question), Message("assistant", answer)), meta=meta, source=Source("data.jsonl", 3))


def items(n: int) -> list[Item]:
    return items_from(row(f"What is {k}?", str(k % 3), topic=k % 4) for k in range(n))


def test_items_ask_what_stands_before_the_last_assistant_turn() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"), Message("user", "e"))
    (item,) = items_from([Conversation(turns, meta={"cluster": 7})])
    assert item.conversation.messages == turns[:3]
    assert (item.reference, item.cluster) == ("d", "7")


def test_references_of_calls_and_from_a_column() -> None:
    calls = (ToolCall("f", {"x": 1}), ToolCall("g", {}))
    one, two = (Conversation((Message("user", "q"), Message("assistant", tool_calls=calls[:n]))) for n in (1, 2))
    assert items_from([one])[0].reference == {"name": "f", "arguments": {"x": 1}}
    assert [entry["name"] for entry in items_from([two])[0].reference] == ["f", "g"]
    assert items_from([row("q", "a", truth=[{"f": {}}])], reference="truth")[0].reference == [{"f": {}}]
    with pytest.raises(DataError, match=r"data.jsonl:3.*truth"):
        items_from([row("q", "a")], reference="truth")


@pytest.mark.parametrize("answer", ["<think>\n2 and 2.\n</think>\n\n4", "<think></think>4", "4"])
def test_a_thought_is_no_part_of_the_reference(answer: str) -> None:
    (item,) = items_from([row("2 + 2?", answer)])
    assert item.reference == "4"
    assert pick_scorer([item.reference]).name == "number"


def test_equal_rows_are_one_item_and_counted() -> None:
    found = items_from([row("q", "a"), row("q", "b"), row("q", "a")])
    assert [item.reference for item in found] == ["a", "b"]
    assert [item.meta["copies"] for item in found] == [2, 1]


@pytest.mark.parametrize("roles", [("user",), ("assistant",), ("system", "user")])
def test_nothing_to_ask_is_refused_by_place(roles: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"data.jsonl:3"):
        items_from([Conversation(tuple(Message(role, "x") for role in roles), source=Source("data.jsonl", 3))])


def test_item_records_hold_what_the_report_shows() -> None:
    (record,) = item_records(items_from([row("q", "a")]))
    assert record["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    assert (record["reference"], record["source"], len(record["item"])) == ("a", "data.jsonl:3", 16)


def test_every_item_gets_one_record_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    asked, run = items(10), open_run(tmp_path / "run")
    sampler = Scripted(lambda messages: "1")

    def save(batch: Sequence[ArmScore]) -> None:
        run.append("scores", *(score.record() for score in batch))
        if len(run.read("scores")) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_arm("plain", asked, sampler, render, exact(), save=save, at_once=3)
    assert len(run.read("scores")) == 6
    run.append("scores", {**run.read("scores")[0], "arm": "another"})
    progress: list[tuple[int, int]] = []
    scores = run_arm(
        "plain",
        asked,
        sampler,
        render,
        exact(),
        done=run.read("scores"),
        save=lambda batch: run.append("scores", *(score.record() for score in batch)),
        on_progress=lambda done, total: progress.append((done, total)),
        at_once=3,
    )
    assert len(sampler.asked) == 10, "what was recorded is not asked again"
    assert [score.item for score in scores] == [item.id for item in asked]
    assert progress == [(9, 10), (10, 10)]
    assert [score for score in scores_from(run.read("scores")) if score.arm == "plain"] == scores
    assert [score.value for score in scores] == [float(k % 3 == 1) for k in range(10)]
    assert (scores[0].tokens_in, scores[0].tokens_out, scores[0].ended) == (2, 2, "stop")
    run.close()


def test_failures_are_records_without_a_value() -> None:
    def picky(conversation: Conversation) -> Prompt:
        if conversation.messages[-1].content == "What is 1?":
            raise TemplateError("no place for it")
        return render(conversation)

    sampler = Scripted(lambda messages: None if "2" in messages[-1].content else "0")
    first, second, third = run_arm("plain", items(3), sampler, picky, exact())
    assert first.value == 1
    assert (second.value, second.ended) == (None, "error")
    assert "no place for it" in second.explanation
    assert (third.value, third.ended) == (None, "error")
    assert "too long" in third.explanation


def test_an_item_twice_is_refused() -> None:
    with pytest.raises(DataError, match="same as another"):
        run_arm("plain", items(2) * 2, Scripted(lambda messages: "1"), render, exact())
    record = run_arm("plain", items(1), Scripted(lambda messages: "1"), render, exact())[0].record()
    with pytest.raises(DataError, match="twice"):
        scores_from([record, record])
    with pytest.raises(DataError, match="'value'"):
        scores_from([{key: entry for key, entry in record.items() if key != "value"}])


def test_most_common_answer() -> None:
    constant = most_common_answer(items_from([row("a", "x"), row("b", "y"), row("c", "y")]))
    scores = run_free_arm("most common answer", items_from([row("d", "y"), row("e", "x")]), constant, exact())
    assert [(score.value, score.text) for score in scores] == [(1.0, "y"), (0.0, "y")]
    with pytest.raises(DataError):
        most_common_answer([])


def test_nearest_row_finds_the_rare_word_and_falls_back() -> None:
    train = items_from(
        [row("the price of the tea", "tea"), row("the price of the coffee", "coffee"), row("the the the", "the"), row("x", "tea")]
    )
    answer = nearest_row(train)
    ask = items_from([row("what does coffee cost, the?", "?"), row("the", "?"), row("zzz", "?", system=None)])
    assert [answer(item) for item in ask] == ["coffee", "the", "tea"]
    assert [answer(item) for item in train] == ["tea", "coffee", "the", "tea"], "a training row is nearest to itself"


def test_nearest_row_equals_dense_tf_idf() -> None:
    rng = np.random.default_rng(0)
    words = np.array(list("abcdefghijkl"))
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 9), p=rng.dirichlet(np.ones(12)))) for _ in range(60)]
    train = items_from(row(text, f"answer {n}", system=None) for n, text in enumerate(texts[:40]))
    ask = items_from(row(text, "?", system=None) for text in texts[40:])
    counts_BV = np.array([[item.conversation.messages[0].content.split().count(word) for word in words] for item in [*train, *ask]])
    rows_V = (counts_BV[:40] > 0).sum(axis=0)
    rarity_V = np.where(rows_V > 0, np.log(41 / (1 + rows_V)) + 1, 0)
    vectors_BV = np.where(counts_BV > 0, 1 + np.log(np.maximum(counts_BV, 1)), 0) * rarity_V
    vectors_BV /= np.maximum(np.linalg.norm(vectors_BV, axis=1, keepdims=True), 1e-12)
    likeness = vectors_BV[40:] @ vectors_BV[:40].T
    answer = nearest_row(train)
    for n, item in enumerate(ask):
        assert likeness[n, int(answer(item).split()[1])] == pytest.approx(likeness[n].max(), abs=1e-12)


def test_few_shot_examples_stand_behind_the_system_message() -> None:
    ask = items_from([row("q", "a")])[0].conversation.messages
    same, other = items_from([row("q1", "a1"), row("q2", "a2", system="Tools: f")])
    messages = few_shot_prompt(ask, [same, other])
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [message.content for message in messages] == ["Be brief.", "q1", "a1", "Tools: f\n\nq2", "a2", "q"]
    call = Conversation((Message("user", "q"), Message("assistant", tool_calls=(ToolCall("f", {}),))))
    assert few_shot_prompt((Message("user", "z"),), items_from([call]))[1].tool_calls == (ToolCall("f", {}),)


def test_the_number_of_examples_is_chosen_on_training_items_alone() -> None:
    train = items_from(row(f"word {k}", "even" if k % 2 == 0 else "odd", cluster=f"c{k}") for k in range(60))
    truth = {f"word {k}": "even" if k % 2 == 0 else "odd" for k in range(60)}
    # right with four examples only
    sampler = Scripted(lambda messages: truth[messages[-1].content] if len(messages) == 2 + 2 * 4 else "neither")
    few = choose_shots(sampler, render, train, exact(), dev=10, seed=1)
    assert few.name == "few-shot 4"
    assert [(entry.size, entry.rate, entry.items) for entry in few.tried] == [(2, 0.0, 10), (4, 1.0, 10), (8, 0.0, 10)]
    shown = {item.conversation.messages[-1].content for item in few.shots}
    asked = {messages[-1].content for messages in sampler.asked}
    assert not shown & asked, "an example is never asked"
    assert {item.reference for item in few.shots[:2]} == {"even", "odd"}, "different answers first"
    assert choose_shots(sampler, render, train, exact(), dev=10, seed=1).shots == few.shots
    assert choose_shots(sampler, render, train, exact(), dev=10, seed=2).shots != few.shots
    prompt = few.around(render)(items_from([row("new", "?")])[0].conversation)
    assert len(prompt.messages) == 2 + 2 * 4


def test_examples_show_different_answers_and_share_nothing_with_dev_items() -> None:
    train = items_from(row(f"word {k}", "rare" if k < 3 else "common", cluster=f"c{k // 3}") for k in range(60))
    for seed in range(5):
        sampler = Scripted(lambda messages: "common")
        few = choose_shots(sampler, render, train, exact(), sizes=(2, 6), dev=60, seed=seed)
        assert {item.reference for item in few.shots[:2]} == {"rare", "common"}, "different answers first"
        largest = max((messages[1:-1] for messages in sampler.asked), key=len)
        groups = {int(message.content.split()[1]) // 3 for message in largest if message.role == "user"}
        asked = {int(messages[-1].content.split()[1]) // 3 for messages in sampler.asked}
        assert not groups & asked, "no dev item comes from an example's cluster"


def test_examples_are_never_asked_where_items_stand_alone() -> None:
    sampler = Scripted(lambda messages: "0")
    choose_shots(sampler, render, items(20), exact(), sizes=(4,), dev=20)
    shown = {message.content for messages in sampler.asked for message in messages[1:-1] if message.role == "user"}
    asked = {messages[-1].content for messages in sampler.asked}
    assert (len(shown), len(asked), shown & asked) == (4, 16, set())


def test_few_training_items_and_failures_while_choosing() -> None:
    few = choose_shots(Scripted(lambda messages: None if len(messages) > 6 else "0"), render, items(6), exact(), seed=0)
    assert [entry.size for entry in few.tried] == [2, 4], "8 examples do not fit into 6 rows"
    assert few.tried[1].unscored == few.tried[1].items > 0
    assert len(few.shots) == 2
    with pytest.raises(DataError, match="at least 3"):
        choose_shots(Scripted(lambda messages: "0"), render, items(2), exact())


class Uneven:
    """Log-probabilities that depend on the row's first token alone."""

    def logprobs(self, rows: Any) -> list[Any]:
        return [np.full(len(row.completion_T), -float(row.prompt_T[0])) for row in rows]


def test_bits_of_rows_that_come_in_clusters_are_as_unsure_as_the_clusters() -> None:
    """Forty rows of four customers are four customers: an interval over rows is far too narrow."""
    examples = [Example((Row(np.array([1 + n % 4]), np.array([1, 2]), np.ones(2, np.float32)),)) for n in range(40)]
    rows, clustered = (bits_per_token(Uneven(), examples, clusters=names) for names in (None, [n % 4 for n in range(40)]))
    few = bits_per_token(Uneven(), examples[:4])
    assert clustered.mean == pytest.approx(rows.mean)
    assert clustered.interval.low == pytest.approx(few.interval.low)
    assert clustered.interval.low < rows.interval.low
    assert bits_change(clustered, clustered).mean == 0
    with pytest.raises(DataError, match="same examples"):
        bits_change(rows, clustered)


def test_items_are_told_apart_by_what_is_sent_and_stand_alone_without_a_cluster_column() -> None:
    turns = (Message("user", "hi"), Message("assistant", "hello"))
    plain, switched = Conversation(turns, meta={"cluster": "x"}), Conversation(turns, template_arguments={"enable_thinking": False})
    assert len(items_from([plain, switched])) == 2
    assert items_from([plain])[0].cluster == "x"
    assert items_from([plain], cluster=None)[0].cluster is None
