"""`sapwood chat` as a person and a script use it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from remote.scripted_server import serving
from remote.test_remote_stream import chunks
from sapwood.chat import Delta
from sapwood.cli.chat_shown import InTurn, SideBySide
from sapwood.cli.main import main
from sapwood.model import LoraConfig, add_lora, load_model, save_adapter, trainable_parameters
from sapwood.records import ToolCall
from tiny.folder import write_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("chat")
    folder = write_model(found / "model")
    for number, name in enumerate(("law", "verse")):
        model = add_lora(load_model(folder, "fp32"), LoraConfig(r=2, alpha=4), 0)
        generator = torch.Generator().manual_seed(number)
        for parameter in trainable_parameters(model).values():
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        save_adapter(model, found / name)
    return found


def test_arms_answer_beside_each_other_and_rows_are_saved(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = place / "rows.jsonl"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"the colour of sky\n/save {rows} law\n/save\n/save {rows} nobody\n/etc/hosts\n"))
    words = ["chat", str(place / "model"), "--beside", f"law={place / 'law'}", f"verse={place / 'verse'}", "--max-new-tokens", "5"]
    assert main([*words, "--dtype", "fp32", "--system", "be brief", "--json"]) == 0
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    assert list(said["arms"]) == ["model", "law", "verse"]
    answers = {arm: messages[2]["content"] for arm, messages in said["arms"].items()}
    assert len(set(answers.values())) == 3
    assert [message["role"] for message in said["messages"]] == ["system", *["user", "assistant"] * 2], "a path is a question, too"
    [row] = map(json.loads, rows.read_text().splitlines())
    assert row["messages"][:3] == said["arms"]["law"][:3]
    assert "/save takes a file" in shown.err
    assert "no arm 'nobody'" in shown.err
    assert "law:\n" in shown.err


def test_each_setting_of_sampling_changes_what_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("the colour of sky\n"))
        assert main(["chat", str(place / "model"), "--max-new-tokens", "12", "--dtype", "fp32", *flags, "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["messages"][1]["content"])

    greedy, hot = said(), ("--temperature", "5")
    assert said(*hot) != greedy
    assert said(*hot) != said(*hot, "--seed", "1")
    assert said(*hot, "--top-k", "1") == said(*hot, "--min-p", "1") == said(*hot, "--top-p", "1e-9") == greedy
    assert said("--repetition-penalty", "1e9") != greedy
    assert main(["chat", "no-such-model", "--min-p", "2"]) == 2
    assert "min_p is 2.0; give a number from 0 to 1" in capsys.readouterr().err


def test_a_row_is_added_whole_or_not_at_all_and_the_conversation_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = place / "edited.jsonl"
    rows.write_text('{"text": "a line that an editor left without its end"}')
    lines = ["sky", f"/save {rows}", f"/save {rows}/below", f"/save {place}", "/save /dev/full", "grass"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(place / "model"), "--max-new-tokens", "2", "--dtype", "fp32", "--json"]) == 0
    shown = capsys.readouterr()
    assert [next(iter(json.loads(line))) for line in rows.read_text().splitlines()] == ["text", "messages"]
    assert "below: its folder cannot be made" in shown.err
    assert f"Could not save into {place}" in shown.err
    assert "Could not save into /dev/full: the disk is full" in shown.err
    assert len(json.loads(shown.out)["messages"]) == 4


def test_a_server_answers_alone_or_beside_a_model(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda body, _: chunks({"content": f"You said {body['messages'][-1]['content']}."})) as server:
        far = ("--hosted-url", server.url, "--hosted-model", "big", "--max-new-tokens", "5", "--json")
        monkeypatch.setattr("sys.stdin", io.StringIO(f"sky\n/save {place / 'far.jsonl'}\n"))
        assert main(["chat", *far, "--system", "be brief", "--temperature", "0.5", "--hosted-leave-out", "seed"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == {"messages": json.loads((place / "far.jsonl").read_text())["messages"]}
        assert [message["content"] for message in said["messages"]] == ["be brief", "sky", "You said sky."]
        assert {"temperature": 0.5, "max_tokens": 5, "stream": True}.items() <= server.bodies[0].items()
        assert "seed" not in server.bodies[0]
        monkeypatch.setattr("sys.stdin", io.StringIO("grass\n"))
        assert main(["chat", str(place / "model"), "--dtype", "fp32", *far]) == 0
        arms = json.loads(capsys.readouterr().out)["arms"]
        assert list(arms) == ["model", "big"]
        assert arms["big"][1]["content"] == "You said grass."
        for words, told in (
            (["chat", *far, "--beside", "base"], "beside belongs to a model of this machine"),
            (["chat", *far, "--dtype", "fp32"], "dtype belongs to a model of this machine"),
            (["chat", *far, "--overflow", "drop oldest"], "overflow needs a model's own tokenizer"),
            (["chat", "--hosted-url", server.url], "both hosted_url and hosted_model"),
            (
                ["chat", str(place / "model"), "--dtype", "fp32", "--hosted-url", server.url, "--hosted-model", "model"],
                "Give one of them another name",
            ),
        ):
            assert main(words) != 0
            assert told in capsys.readouterr().err
    assert main(["chat", *far]) != 0
    assert "Check that the server runs" in capsys.readouterr().err, "before anything is typed"


def test_base_needs_an_adapter_that_stands_on_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(place / "model"), "--beside", "base"]) != 0
    assert "it is its own base" in capsys.readouterr().err


def test_a_template_without_a_place_for_tools_is_refused_before_anything_is_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "functions.py"
    file.write_text('def rest(hours: int) -> str:\n    """Rest.\n\n    Args:\n        hours: How long.\n    """\n    return "done"\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("rest!\n"))
    words = ["chat", str(place / "model"), "--tools", str(file), "--max-new-tokens", "3", "--dtype", "fp32"]
    assert main(words) != 0
    assert "--tools-in-system" in capsys.readouterr().err
    assert main([*words, "--tools-in-system", "--json"]) == 0
    assert [message["role"] for message in json.loads(capsys.readouterr().out)["messages"]] == ["user", "assistant"]


def test_what_is_shown_of_thoughts_calls_and_results() -> None:
    out = io.StringIO()
    with InTurn(["mine"], out) as shown:
        for delta in (
            Delta(reasoning="hm"),
            Delta(content="a\x1b[2Jb"),
            Delta(content="c"),
            Delta(index=0, name="f"),
            Delta(index=0, arguments="{}"),
        ):
            shown.heard.delta("mine", delta)
        shown.heard.result("mine", ToolCall("f", {}), "done")
        shown.heard.delta("mine", Delta(content="end"))
    assert out.getvalue() == "(thinks) hm\na␛[2Jbc\n(calls) f {}\n(f says) done\nend\n"


def test_columns_hold_every_arm() -> None:
    out = io.StringIO()
    with SideBySide(["one", "two"], out) as shown:
        shown.heard.delta("one", Delta(content="left"))
        shown.heard.delta("two", Delta(content="right"))
    lines = out.getvalue().splitlines()
    assert any("one" in line and "two" in line for line in lines)
    assert any("left" in line and "right" in line for line in lines)
