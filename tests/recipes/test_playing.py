"""`sapwood grpo` with tools and environments: loaded by name, offered in prompts, played out, and refused where nothing would read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import sapwood
from sapwood.chat import Chat
from sapwood.errors import ConfigError
from sapwood.evaluate.tool_turns import WithTools
from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.recipes.playing import PlayConfig, play_of
from sapwood.records import Conversation, Item, Message
from sapwood.run import read_records
from sapwood.train.policy import PolicyConfig
from sapwood.train.rollouts import Asked
from tiny.folder import write_model

ENVIRONMENT = '''
class Echo:
    """Wants three turns, and likes long ones."""

    def reset(self, item):
        self.left = 3
        return f"You have {self.left} turns."

    def step(self, answer):
        self.left -= 1
        return f"{self.left} left", len(answer) / 100, self.left == 0
'''


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def learned(model: Path, folder: Path, **knobs: Any) -> Any:
    folder.mkdir(exist_ok=True)
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(6)))
    settings = {"steps": 2, "prompts": 2, "group": 4, "max_new_tokens": 60, "preflight": 0, "held_out": 0, "r": 2, "budget": 1024}
    settings["quiet"] = True
    return sapwood.grpo(str(file), model=str(model), out=folder / "run", cache=False, **{**settings, **knobs})


def test_an_environment_plays_and_its_turns_are_trained(model: Path, tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ENVIRONMENT)
    result = learned(model, tmp_path, environment=f"{tmp_path / 'echo.py'}:Echo", lr=1e-2)
    steps = [record for record in read_records(result.path / "metrics.jsonl") if record["kind"] == "train"]
    assert [list(step["rewards"]) for step in steps] == [["environment"]] * 2, "the reward where no other is named"
    shown = [record for record in read_records(result.path / "rollouts.jsonl") if record.get("turns")]
    assert shown, "answers of several turns are shown with all of them"
    assert all(record["turns"][-1] == record["answer"] for record in shown)
    assert any(step["unique_tokens"] > 0 and step["grad_norm"] > 0 for step in steps)
    again = learned(model, tmp_path / "again", environment=f"{tmp_path / 'echo.py'}:Echo", lr=1e-2)
    files = [(run.path / "adapter" / "adapter_model.safetensors").read_bytes() for run in (result, again)]
    assert files[0] == files[1]


def test_tools_are_offered_in_every_prompt_and_answer_calls(model: Path) -> None:
    chat = Chat.load(model).with_tools_in_system()
    conversation = Conversation((Message("user", "3 plus 4?"),))
    asked = [Asked(Item(conversation, "7"), chat.prompt(conversation.messages))]
    play = play_of(PlayConfig(), [add])
    offered = play.offered(asked, chat)
    assert "Add two numbers." in offered[0].prompt.text
    assert [tool["function"]["name"] for tool in offered[0].item.conversation.tools] == ["add"]
    sampler = play.around(Engine(load_model(model, "fp32"), chat, memory=1 << 24), offered, chat)
    assert isinstance(sampler, WithTools)
    assert play.longest(10) == 90
    assert play_of(PlayConfig()).longest(10) == 10


def test_the_environment_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(class Guess:.*?)```", page, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)  # noqa: S102  the page is ours
    world = names["Guess"]()
    assert world.reset(Item(Conversation((Message("user", "Guess."),)), "7")) is None
    assert world.step("5") == ("no, another one", 0.0, False)
    assert world.step(" 7\n") == ("right", 1.0, True)


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text("def add(a: int, b: int) -> int:\n    return a + b\n")
    name = f"{tmp_path / 'tools.py'}:add"
    with pytest.raises(ConfigError, match="both given"):
        PlayConfig(tools=(name,), environment=name)
    with pytest.raises(ConfigError, match="both given"):
        play_of(PlayConfig(tools=(name,)), environment=dict)
    with pytest.raises(ConfigError, match=r"give FILE\.py:NAME|Give FILE\.py:NAME"):
        PlayConfig(tools=("add",))
    with pytest.raises(ConfigError, match="no function 'ad'"):
        play_of(PlayConfig(tools=(name[:-1],)))
    with pytest.raises(ConfigError, match="another name"):
        play_of(PlayConfig(tools=(name,)), [add])
    with pytest.raises(ConfigError, match="neither tools nor an environment"):
        play_of(PlayConfig(turns=3))
    assert play_of(PlayConfig(tools=(name,), turns=3)).turns == 3


def test_turns_that_would_count_as_answers_are_refused() -> None:
    play, alone = play_of(PlayConfig(), [add]), play_of(PlayConfig())
    for policy in (PolicyConfig(loss="grpo"), PolicyConfig(loss="gspo"), PolicyConfig(correction="sequence")):
        with pytest.raises(ConfigError, match="would count as answers of their own"):
            play.refuse_unlike(policy, shares_prefixes=False)
        play.refuse_unlike(policy, shares_prefixes=True)
        alone.refuse_unlike(policy, shares_prefixes=False)
    play.refuse_unlike(PolicyConfig(), shares_prefixes=False)


def test_answers_that_fill_the_context_are_cut_and_rewarded_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every reply outgrows the context, so that each answer with an end of its own is cut behind its first turn."""
    short = write_model(tmp_path / "short", context=200)
    (tmp_path / "echo.py").write_text(ENVIRONMENT.replace('f"{self.left} left"', '"go on " * 40'))
    knobs = {"environment": f"{tmp_path / 'echo.py'}:Echo", "group": 8, "max_new_tokens": 100, "preflight": 2, "quiet": False}
    result = learned(short, tmp_path, **knobs)
    steps = [record for record in read_records(result.path / "metrics.jsonl") if record["kind"] == "train"]
    assert [(step["unjudged"], step["cut"]) for step in steps] == [(0.0, 1.0)] * 2
    assert sum(step["outgrown"] for step in steps) > 0
    assert re.search(r"100% cut \(\d+% by the context\)", " ".join(capsys.readouterr().err.split()))
    shown = [record for record in read_records(result.path / "rollouts.jsonl") if record.get("outgrown")]
    assert shown
    for record in shown:
        assert (record["ended"], record["parts"]["environment"]) == ("length", len(record["answer"]) / 100)
