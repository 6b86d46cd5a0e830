"""What is sent of a conversation that outgrows the context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.chat import Chat
from sapwood.chat.overflow import OverflowingError, _request, fitted_prompt, summary_of, summary_tokens
from sapwood.errors import DataError
from sapwood.records import Completion, Ended, Message, Prompt
from tiny.folder import write_model

CONTEXT, WIDER = 160, 400


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(write_model(tmp_path_factory.mktemp("overflow") / "model", context=CONTEXT))


@pytest.fixture(scope="module")
def summarising(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(write_model(tmp_path_factory.mktemp("summaries") / "model", context=WIDER))


def talk(words: list[int], *, system: bool = True, calls: bool = False) -> list[Message]:
    """Questions and answers of so many words; the last is a question."""
    found = [Message("system", "answer")] if system else []
    for place, count in enumerate(words):
        found.append(Message("user", " ".join(["colour"] * count)))
        if place < len(words) - 1:
            found += [Message("tool", "grass")] * calls + [Message("assistant", "blue")]
    return found


def test_what_fits_is_sent_as_it_is(chat: Chat) -> None:
    messages = talk([1, 2, 3])
    fitted = fitted_prompt(chat, messages, overflow="drop oldest")
    assert (fitted.prompt.ids, fitted.dropped) == (chat.prompt(messages).ids, 0)


def test_refused_by_default_with_the_numbers(chat: Chat) -> None:
    with pytest.raises(DataError, match=r"row 3: the prompt has \d+ tokens, and with 9 of answer .* context of 160; nothing may be left"):
        fitted_prompt(chat, talk([40, 40, 70]), room=9, where="row 3")


@given(
    words=st.lists(st.integers(1, 25), min_size=1, max_size=9),
    room=st.integers(1, 60),
    system=st.booleans(),
    calls=st.booleans(),
)
def test_as_few_of_the_oldest_exchanges_as_possible_go(chat: Chat, words: list[int], room: int, system: bool, calls: bool) -> None:
    messages = talk(words, system=system, calls=calls)
    head = int(system)
    cuts = [[*messages[:head], *messages[place:]] for place in range(head, len(messages)) if messages[place].role == "user"]
    fitting = [cut for cut in cuts if len(chat.prompt(cut).ids) + room <= CONTEXT]
    if not fitting:
        with pytest.raises(DataError, match="last question alone"):
            fitted_prompt(chat, messages, overflow="drop oldest", room=room)
        return
    fitted = fitted_prompt(chat, messages, overflow="drop oldest", room=room)
    assert fitted.prompt.ids == chat.prompt(fitting[0]).ids
    assert fitted.dropped == len(messages) - len(fitting[0])


@given(words=st.lists(st.integers(1, 40), min_size=1, max_size=16), room=st.integers(1, 40), system=st.booleans(), calls=st.booleans())
def test_a_summary_stands_in_the_place_of_what_goes(summarising: Chat, words: list[int], room: int, system: bool, calls: bool) -> None:
    messages = talk(words, system=system, calls=calls)
    try:
        first = fitted_prompt(summarising, messages, overflow="summarise", room=room)
    except DataError:
        assert len(summarising.prompt(messages).ids) + room > WIDER
        return
    if first.to_summarise is None:
        assert (first.prompt.ids, first.dropped) == (summarising.prompt(messages).ids, 0)
        return
    assert len(first.to_summarise.ids) + summary_tokens(summarising) <= WIDER
    assert first.to_summarise.text.count("assistant: blue") >= 1
    last = fitted_prompt(summarising, messages, overflow="summarise", room=room, summary=" They like blue.\n")
    assert last.to_summarise is None
    assert last.dropped == first.dropped > 0
    head = int(system)
    question, *rest = messages[head + last.dropped :]
    kept = [*messages[:head], replace(question, content=f"(What was said before, in short: They like blue.)\n\n{question.content}"), *rest]
    assert last.prompt.ids == summarising.prompt(kept).ids
    assert len(last.prompt.ids) + room <= WIDER


def test_a_summary_is_asked_of_the_newest_where_all_are_too_long_for_it(summarising: Chat) -> None:
    asked = fitted_prompt(summarising, talk([100] * 9), overflow="summarise").to_summarise
    assert asked is not None
    assert "beginning is not shown" in asked.text
    assert len(asked.ids) + summary_tokens(summarising) <= WIDER


def test_a_context_too_short_to_ask_for_a_summary_is_told(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "context_length", 40)
    with pytest.raises(DataError, match="too short to ask it for a summary"):
        _request(chat, talk([40, 1])[1:3], None)


def test_a_model_that_names_no_context_takes_everything(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "context_length", None)
    assert fitted_prompt(chat, talk([300])).dropped == 0


def test_the_policy_is_asked_for_at_the_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from io import StringIO

    from sapwood.cli import chat_verb

    folder = write_model(tmp_path / "model", context=64)
    lines = "\n".join(["the colour of grass is green and the sky is blue"] * 4)
    for flags, dropped in (([], False), (["--overflow", "drop oldest"], True)):
        monkeypatch.setattr("sys.stdin", StringIO(lines))
        chat_verb.run([str(folder), "--dtype", "fp32", "--max-new-tokens", "4", *flags])
        told = capsys.readouterr()
        said = told.out + told.err
        assert ("no longer sent" in said) is dropped
        assert ("outgrows the model's context of 64" in said) is not dropped


def test_a_summary_is_what_was_said_and_not_what_was_thought() -> None:
    asked = Prompt((Message("user", "?"),), (1,), "?")
    thought = Completion(asked, (2,), "<think>hm</think>Blue.", Ended.STOP, message=Message("assistant", "Blue.", reasoning="hm"))
    assert summary_of(thought) == "Blue."
    assert summary_of(Completion(asked, (2,), "Blue.", Ended.LENGTH)) == "Blue."
    assert summary_of(Completion(asked, (), " ", Ended.STOP)) == "no summary was written"
    with pytest.raises(OverflowingError, match="its summary failed: no memory"):
        summary_of(Completion(asked, (2,), "Blu", Ended.ERROR, error="no memory"))
