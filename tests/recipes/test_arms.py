"""The arms' knobs and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sapwood.chat import Chat
from sapwood.chat.overflow import Overflow, fitted_prompt
from sapwood.errors import ConfigError
from sapwood.evaluate import exact
from sapwood.recipes import Screen
from sapwood.recipes.arms import Arms, EvalConfig
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, Source
from sapwood.run import open_run
from tiny.folder import write_model


@pytest.mark.parametrize("given", [{"dev": 0}, {"max_new_tokens": 0}, {"shots": (2, 0)}])
def test_knobs_that_can_only_fail_later_are_refused_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))} is .*at least 1"):
        EvalConfig(**given)


class Half:
    """A sampler that answers the first prompt rightly and fails on all others, or cuts them off."""

    def __init__(self, others: Ended = Ended.ERROR) -> None:
        self.others = others

    def generate(self, prompts: Any, params: Any, **_: Any) -> list[Completion]:
        right, *others = prompts
        return [
            Completion(right, (1,), "yes", Ended.STOP),
            *(Completion(prompt, (), "", self.others, error="it does not fit") for prompt in others),
        ]


def told(sampler: Half, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the screen says of an arm with two items."""
    items = [Item(Conversation((Message("user", text),)), "yes") for text in ("one", "two")]
    screen, said = Screen(quiet=True), list[str]()
    monkeypatch.setattr(screen, "say", lambda text, style="": said.append(text))
    run = open_run(tmp_path / "run")
    arms = Arms(items, items, Chat.load(write_model(tmp_path / "model")), exact(), EvalConfig(), run, screen)
    arms.one("plain prompt", sampler)
    run.close()
    return said


def test_the_rate_on_the_screen_counts_no_unscored_item_as_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = told(Half(), tmp_path, monkeypatch)
    assert "100.0%  (1 of 1, 1 could not be scored)" in line


def test_answers_that_were_cut_off_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate, cut = told(Half(Ended.LENGTH), tmp_path, monkeypatch)
    assert "50.0%  (1 of 2)" in rate
    assert "1 of these answers were cut at 128 tokens (--max-new-tokens)" in cut


LONG = tuple(Message(role, f"{number} the colour of grass") for number in range(12) for role in ("user", "assistant"))


@pytest.mark.parametrize("overflow", ["drop oldest", "summarise"])
def test_what_outgrows_the_context_is_asked_as_chat_and_server_ask_it_and_told(
    overflow: Overflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        Item(Conversation((*before, Message("user", "sky?")), source=Source("f", line)), "yes") for line, before in ((1, ()), (2, LONG))
    ]
    screen, said, asked = Screen(quiet=True), list[str](), list[Prompt]()
    monkeypatch.setattr(screen, "say", lambda text, style="": said.append(text))
    chat = Chat.load(write_model(tmp_path / "model", context=256))

    class Yes:
        def generate(self, prompts: Any, params: Any, **_: Any) -> list[Completion]:
            asked.extend(prompts)
            return [Completion(prompt, (1,), "yes", Ended.STOP) for prompt in prompts]

    run = open_run(tmp_path / "run")
    config = EvalConfig(max_new_tokens=20)
    scores = Arms(items, items, chat, exact(), config, run, screen, overflow=overflow).one("plain prompt", Yes())
    assert [score.value for score in scores] == [1.0, 1.0]
    summary = {"summary": "yes"} if overflow == "summarise" else {}
    expected = fitted_prompt(chat, items[1].conversation.messages, overflow=overflow, room=20, **summary)
    assert 0 < expected.dropped < len(LONG)
    assert asked[-1].ids == expected.prompt.ids
    assert asked[-2].ids == chat.prompt(items[0].conversation.messages).ids
    assert len(asked) == (3 if overflow == "summarise" else 2)
    [record] = run.read("outgrown")
    assert (record["arm"], record["source"], record["dropped"]) == ("plain prompt", "f:2", expected.dropped)
    run.close()
    assert f"1 questions outgrew the context: {'a summary' if summary else 'they were asked'}" in said[-1]
    assert f"{expected.dropped} oldest messages" in said[-1]
