"""Arms side by side, functions that are really called, and rows that training reads."""

from __future__ import annotations

import _thread
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote.scripted_server import serving as far_server
from remote.test_remote_stream import chunks
from sapwood.chat import Chat
from sapwood.data import read
from sapwood.errors import ConfigError
from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.recipes.functions import functions_of
from sapwood.recipes.talk import CALLS, Heard, Talk
from sapwood.records import Completion, Ended, Message, Prompt, SamplingParams
from sapwood.remote import Remote, RemoteSampler
from serve.test_serve_tools import HERMES
from tiny.folder import write_model

FUNCTIONS = '''
import math

def weather(city: str, days: int = 1) -> dict:
    """
    The weather of a city.

    Args:
        city: Its name.
        days: How many days from now.
    """
    if city == "Atlantis":
        raise LookupError("it sank")
    return {"city": city, "degrees": 18, "days": days}

def _not_offered(x):
    return math.sqrt(x)
'''


def call(city: str) -> str:
    return '<tool_call>\n{"name": "weather", "arguments": {"city": "' + city + '"}}\n</tool_call>'


class Scripted:
    """An engine whose arms say what was written down, a token a step."""

    def __init__(self, chat: Chat, script: dict[str | None, list[str]]) -> None:
        self.chat, self.script = chat, script
        self.asked: list[tuple[str | None, Prompt]] = []
        self.running: list[Any] = []

    def open(self) -> Scripted:
        return self

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.running.clear()

    @property
    def idle(self) -> bool:
        return not self.running

    def add(self, prompt: Prompt, params: SamplingParams, *, adapter: str | None, on_token: Callable[[int], None]) -> Any:
        self.asked.append((adapter, prompt))
        text = self.script[adapter].pop(0)
        ids = [*self.chat.tokens.encode(text), min(self.chat.stop_ids)]
        self.running.append(_Said(self.chat, prompt, ids, on_token))
        return self.running[-1]

    def step(self) -> list[Any]:
        ended = [answer for answer in self.running if answer.step()]
        self.running = [answer for answer in self.running if answer not in ended]
        return ended


class _Said:
    def __init__(self, chat: Chat, prompt: Prompt, ids: list[int], on_token: Callable[[int], None]) -> None:
        self.chat, self.prompt, self.ids, self.on_token, self.place = chat, prompt, ids, on_token, 0

    def step(self) -> bool:
        self.place += 1
        self.on_token(self.ids[self.place - 1])
        return self.place == len(self.ids)

    def completion(self) -> Completion:
        message = self.chat.parse(self.ids, self.prompt).message
        return Completion(self.prompt, tuple(self.ids), self.chat.decode(self.ids), Ended.STOP, message=message)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(write_model(tmp_path_factory.mktemp("talk") / "model", template=HERMES, context=1500))


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("functions") / "functions.py"
    file.write_text(FUNCTIONS)
    return functions_of(file)


def talk_of(chat: Chat, script: dict[str | None, list[str]], functions: Any = ({}, ()), **more: Any) -> tuple[Talk, Scripted, list[str]]:
    engine: Any = Scripted(chat, script)
    arms = {name or "mine": name for name in script}
    return Talk(engine, chat, arms, SamplingParams(max_new_tokens=50), tools=functions[0], schemas=functions[1], **more), engine, []


def heard_in(log: list[str]) -> Heard:
    return Heard(
        lambda arm, delta: log.append(f"{arm}: {delta.content}{delta.name}{delta.arguments}"),
        lambda arm, made, result: log.append(f"{arm} called {made.name}: {result}"),
        lambda arm, told: log.append(f"{arm} note: {told}"),
    )


def test_a_call_is_made_and_its_result_is_what_the_answer_rests_on(chat: Chat, functions: Any, tmp_path: Path) -> None:
    talk, engine, log = talk_of(chat, {None: [call("Rome"), "18 degrees in Rome."]}, functions)
    assert talk.ask("the weather in Rome?", heard_in(log))
    assert [message.role for message in talk.said["mine"]] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(talk.said["mine"][2].content) == {"city": "Rome", "degrees": 18, "days": 1}
    assert '{"city":"Rome","degrees":18,"days":1}' in engine.asked[1][1].text, "the second prompt holds the result"
    assert "The weather of a city." in engine.asked[0][1].text
    assert 'mine called weather: {"city":"Rome","degrees":18,"days":1}' in log
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(talk.row("mine")) + "\n")
    [conversation] = read([file]).conversations
    assert conversation.messages[1].tool_calls[0].arguments == {"city": "Rome"}
    assert conversation.trained() == [1, 3]
    assert conversation.tools[0]["function"]["parameters"]["required"] == ["city"]


def test_a_function_that_fails_and_one_that_is_not_there_are_told_to_the_model(chat: Chat, functions: Any) -> None:
    unknown = '<tool_call>\n{"name": "_not_offered", "arguments": {"x": 4}}\n</tool_call>'
    talk, _, log = talk_of(chat, {None: [call("Atlantis"), unknown, "I do not know."]}, functions)
    talk.ask("the weather?", heard_in(log))
    results = [message.content for message in talk.said["mine"] if message.role == "tool"]
    assert results[0] == "Error: LookupError: it sank"
    assert results[1].startswith("Error: there is no tool '_not_offered'")


def test_calls_without_end_end(chat: Chat, functions: Any) -> None:
    talk, engine, log = talk_of(chat, {None: [call("Rome")] * 50}, functions)
    talk.ask("?", heard_in(log))
    assert len(engine.asked) == CALLS + 1


def test_each_arm_goes_on_with_its_own_answers(chat: Chat) -> None:
    talk, engine, log = talk_of(chat, {None: ["red.", "yes."], "law": ["blue sky.", "no."]}, start=(Message("system", "be brief"),))
    talk.ask("colour?", heard_in(log))
    talk.ask("sure?", heard_in(log))
    prompts = {(adapter, index // 2): prompt.text for index, (adapter, prompt) in enumerate(engine.asked)}
    assert "red." in prompts[None, 1]
    assert "blue sky." not in prompts[None, 1]
    assert "blue sky." in prompts["law", 1]
    assert all("be brief" in text for text in prompts.values())
    assert [message.content for message in talk.said["law"]] == ["be brief", "colour?", "blue sky.", "sure?", "no."]
    talk.reset()
    assert talk.said["law"] == [Message("system", "be brief")]
    with pytest.raises(ConfigError, match="no answer to save"):
        talk.row("law")
    with pytest.raises(ConfigError, match="no arm 'lw'"):
        talk.row("lw")


def test_a_question_that_does_not_fit_is_told_and_forgotten(chat: Chat) -> None:
    talk, engine, log = talk_of(chat, {None: ["never"]})
    assert not talk.ask("long " * 2000, heard_in(log))
    assert "outgrows the model's context" in log[0]
    assert talk.said["mine"] == []
    assert engine.asked == []


def test_stopping_leaves_the_histories_as_they_were(chat: Chat) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    talk, _, _ = talk_of(chat, {None: ["red."]})
    with pytest.raises(KeyboardInterrupt):
        talk.ask("colour?", Heard(stop, stop, stop))
    assert talk.said == {"mine": []}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "defines no function"),
        ("import nothing_of_this_name", "it does not run: ModuleNotFoundError"),
        ("def f(x: int) -> int:\n    return x", "Give it type hints and a docstring"),
        ('def f(x):\n    """F.\n\n    Args:\n        x: X.\n    """', "Give it type hints and a docstring"),
    ],
)
def test_files_that_do_not_say_enough_are_refused(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "functions.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        functions_of(file)
    with pytest.raises(ConfigError, match="no such file"):
        functions_of(tmp_path / "other.py")


def test_a_summary_is_sent_where_the_conversation_outgrows_the_context(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", context=400)
    chat = Chat.load(folder)
    talk = Talk(Engine(load_model(folder, "fp32"), chat), chat, {"one": None}, SamplingParams(max_new_tokens=4), overflow="summarise")
    notes: list[str] = []
    heard = Heard(lambda *_: None, lambda *_: None, lambda _, note: notes.append(note))
    while not notes:
        assert talk.ask("the colour of grass is green and that of the sky is blue, says the owl", heard)
    assert "a summary is sent in place of its oldest" in notes[0]
    assert talk.said["one"][-1].role == "assistant"


def far_talk(url: str, functions: Any = ({}, ()), **more: Any) -> Talk:
    remote = Remote(url=url, model="big", backoff=0.01, tries=2, timeout=5.0)
    params = SamplingParams(max_new_tokens=50, temperature=0.5)
    given = {"engine": None, "chat": None, "arms": {}} | more
    return Talk(**given, params=params, servers={"big": RemoteSampler(remote)}, tools=functions[0], schemas=functions[1])


def test_a_server_answers_beside_the_engine_and_calls_the_same_functions(chat: Chat, functions: Any) -> None:
    made = [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
    replies = [
        chunks({"tool_calls": made}, reason="tool_calls"),
        chunks({"content": "It is "}, {"content": "18."}),
        chunks({"content": "Yes."}),
    ]
    engine: Any = Scripted(chat, {None: [call("Oslo"), "Cold.", "No."]})
    with far_server(lambda body, before: replies[before]) as server:
        log: list[str] = []
        talk = far_talk(server.url, functions, engine=engine, chat=chat, arms={"mine": None})
        assert talk.ask("the weather in Rome?", heard_in(log))
        assert talk.ask("sure?", heard_in(log))
    assert [message.role for message in talk.said["big"]] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [message.content for message in talk.said["big"][3:]] == ["It is 18.", "sure?", "Yes."]
    assert [message.content for message in talk.said["mine"][3:]] == ["Cold.", "sure?", "No."]
    assert "big: It is " in log, "as it came"
    assert any(line.startswith('big called weather: {"city":"Rome"') for line in log)
    assert server.bodies[1]["messages"][2]["tool_call_id"] == "c1"
    assert server.bodies[2]["messages"][-1] == {"role": "user", "content": "sure?"}
    assert (server.bodies[0]["temperature"], server.bodies[0]["tools"][0]["function"]["name"]) == (0.5, "weather")
    row = talk.row("big")
    assert [message["role"] for message in row["messages"]] == [message.role for message in talk.said["big"]]
    assert row["tools"]


def test_a_server_that_breaks_or_is_gone_is_told_and_the_question_forgotten() -> None:
    replies = [chunks({"content": "Fine."}), chunks({"content": "Half"}, reason=None, done=False)]
    with far_server(lambda body, before: replies[before]) as server:
        talk, log = far_talk(server.url), list[str]()
        assert talk.ask("first", heard_in(log))
        said = list(talk.said["big"])
        assert not talk.ask("second", heard_in(log))
        assert "big: Half" in log
        assert "in the middle of the answer" in log[-1]
        assert talk.said["big"] == said
    assert not talk.ask("third", heard_in(log))
    assert log[-1].startswith("big note: ")
    assert talk.said["big"] == said


def test_stopping_does_not_wait_for_a_server() -> None:
    let_go = threading.Event()

    def hangs(body: Any, before: int) -> bytes:
        if before:
            let_go.wait(20)
        return chunks({"content": "Fine."})

    with far_server(hangs) as server:
        talk, log = far_talk(server.url), list[str]()
        assert talk.ask("first", heard_in(log))
        threading.Timer(0.5, _thread.interrupt_main).start()  # as Ctrl-C
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            talk.ask("second", heard_in(log))
        assert time.monotonic() - began < 10
        assert [message.content for message in talk.said["big"]] == ["first", "Fine."]
        told = len(log)
        let_go.set()
        time.sleep(0.3)
        assert len(log) == told, "what comes later is for nobody"
