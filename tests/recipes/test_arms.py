"""The arms' knobs and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sapwood.chat import Chat
from sapwood.errors import ConfigError
from sapwood.evaluate import exact
from sapwood.recipes import Screen
from sapwood.recipes.arms import Arms, EvalConfig
from sapwood.records import Completion, Conversation, Ended, Item, Message
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
