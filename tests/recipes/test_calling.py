"""`sapwood eval --tools`: calls are played out with the user's own functions, and the last word is judged."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import sapwood
from remote.scripted_server import said, serving
from sapwood.cli.main import main
from sapwood.errors import CheckpointError, ConfigError, DataError
from sapwood.records import Completion, Ended, Message, ToolCall
from sapwood.run import read_records
from tiny.folder import write_model

TOOLS = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The one.
        b: The other.
    """
    return a + b
'''


class Calculator:
    """A scripted model: it calls `add`, and says what came back; of eights it calls without an end."""

    def __init__(self, model: Any, chat: Any) -> None: ...

    def generate(self, prompts: Any, params: Any, **_: Any) -> list[Completion]:
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: Any) -> Completion:
        asked, last = next(turn for turn in prompt.messages if turn.role == "user").content, prompt.messages[-1].content
        if last != asked and "8" not in asked:
            said = f"It is {re.findall(r'-?[0-9]+', last)[-1]}."
            return Completion(prompt, (1, 2, 3), said, Ended.STOP, message=Message("assistant", said))
        a, b = re.findall(r"\d+", asked)
        call = ToolCall("add", {"a": int(a), "b": int(b)}, "1")
        return Completion(prompt, (1, 2), "", Ended.STOP, message=Message("assistant", "", tool_calls=(call,)))


def row(a: int, b: int, result: int, said: str | None = None) -> dict[str, Any]:
    """A logged conversation: the question, the call and its result as they were, the answer."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}, "id": "1"}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": f"What is {a} plus {b}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": str(result), "tool_call_id": "1"},
        {"role": "assistant", "content": f"It is {a + b}." if said is None else said},
    ]
    return {"messages": turns}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("sapwood.recipes.assess"), "Engine", Calculator)
    write_model(tmp_path / "model", context=2048)
    Path("tools.py").write_text(TOOLS)
    rows = [row(3, 4, 7), row(3, 4, 99), row(5, 6, 11), row(8, 1, 9), row(2, 2, 4, "It is 5.")]
    Path("sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path


def measured(**more: Any) -> Any:
    knobs = {"model": "model", "dtype": "fp32", "scorer": "number", "tools_in_system": True, "tools": ("tools.py:add",), "quiet": True}
    return sapwood.evaluate("sums.jsonl", out="run", **{**knobs, **more})


def test_calls_are_played_out_and_the_last_word_is_judged(place: Path) -> None:
    result = measured(turns=2)
    items = {record["item"]: record for record in read_records(Path("run/items.jsonl"))}
    assert [[turn["role"] for turn in item["messages"]] for item in items.values()] == [["user"]] * 4, "no logged call is shown"
    assert all(item["tools"][0]["function"]["name"] == "add" for item in items.values())
    scores = {items[score["item"]]["messages"][0]["content"]: score for score in read_records(Path("run/scores.jsonl"))}
    assert [scores[f"What is {a} plus {b}?"]["value"] for a, b in ((3, 4), (5, 6), (2, 2))] == [1, 1, 0]
    assert scores["What is 3 plus 4?"]["text"] == "It is 7."
    assert scores["What is 3 plus 4?"]["copies"] == 2, "two logs of one question, whatever the tool said then"
    assert scores["What is 3 plus 4?"]["explanation"].endswith("after 1 round of calls")
    assert scores["What is 3 plus 4?"]["tokens_out"] == 5, "each round was paid for"
    assert scores["What is 8 plus 1?"]["ended"] != "stop"
    assert scores["What is 8 plus 1?"]["explanation"].endswith("after 2 rounds of calls"), "turns bounds the rounds"
    assert result.arms["plain prompt"].items >= 3


def test_a_hosted_model_calls_the_same_functions_and_each_round_is_paid_for(place: Path) -> None:
    def hosted(body: dict[str, Any], _: int) -> bytes:
        asked, last = body["messages"][0]["content"], body["messages"][-1]
        if last["role"] == "tool" and "8" not in asked:
            return said(f"It is {last['content']}.", usage=(30, 4))
        a, b = map(int, re.findall(r"\d+", asked))
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": json.dumps({"a": a, "b": b})}}
        return said(None, tool_calls=[call], reason="tool_calls", usage=(20, 6))  # type: ignore[arg-type]

    with serving(hosted) as server:
        result = measured(turns=2, hosted_url=server.url, hosted_model="big", hosted_in=1.0, hosted_out=2.0)
    assert {tool["function"]["name"] for body in server.bodies for tool in body["tools"]} == {"add"}
    answered = [body["messages"][-2:] for body in server.bodies if len(body["messages"]) > 1]
    assert all(call["tool_calls"][0]["id"] == tool["tool_call_id"] == "c1" for call, tool in answered)
    scores = [score for score in read_records(Path("run/scores.jsonl")) if score["arm"] == "hosted model"]
    assert [(score["value"], score["tokens_in"], score["tokens_out"]) for score in scores[:2]] == [(1, 50, 10)] * 2
    assert result.arms["hosted model"].rate == result.arms["plain prompt"].rate, "the same words to the same results"
    read, written = (sum(score[key] for score in scores) for key in ("tokens_in", "tokens_out"))
    assert result.costs["costs"]["hosted model"]["dollars"] == pytest.approx((read + 2 * written) / 1e6)


def test_what_tools_cannot_answer_is_refused_before_anything_is_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="neither tools nor an environment"):
        measured(tools=(), turns=3)
    with pytest.raises(ConfigError, match="no function 'ad'"):
        measured(tools=("tools.py:ad",))
    with pytest.raises(Exception, match="tools"):
        measured(tools_in_system=False)
    Path("sums.jsonl").write_text("".join(json.dumps({"messages": row(n, n, 2 * n)["messages"][:2]}) + "\n" for n in range(3)))
    with pytest.raises(DataError, match=r"sums\.jsonl:1: its last answer is a call"):
        measured()
    assert not Path("run").exists()
    assert main(["eval", "sums.jsonl", "--model", "model", "--tools", "add"]) == 2
    assert "Give FILE.py:NAME" in capsys.readouterr().err


def test_other_tools_are_another_evaluation(place: Path) -> None:
    measured()
    before = Path("run/scores.jsonl").read_bytes()
    measured()
    assert Path("run/scores.jsonl").read_bytes() == before, "what is there is not asked again"
    Path("tools.py").write_text(TOOLS.replace("a + b", "a - b"))
    with pytest.raises(CheckpointError, match="other tools"):
        measured()
