"""DeepSeek-R1-Distill-Qwen: what its template does to a conversation, line by line, and what is trained in spite of it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from shutil import copytree

import jinja2
import pytest
from template_families import folder, templates
from tokenizers import Tokenizer, processors

from sapwood.chat import Chat, examine
from sapwood.errors import TemplateError
from sapwood.records import Conversation, Message, Source, ToolCall

NAME = "deepseek_r1_distill"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
ASK = Message("user", "2+2?")
TRACE = Message("assistant", "<think>\nadd\n</think>\n\n4")
CALLS = (ToolCall("add", {"a": 2}, "a1b2c3d4e"), ToolCall("add", {"a": 3}, "b2c3d4e5f"))


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(folder(NAME), today=datetime(2026, 1, 2))


def trained(chat: Chat, *messages: Message, **more: object) -> list[tuple[str, str]]:
    conversation = Conversation(messages, source=Source("traces.jsonl", 5), **more)  # type: ignore[arg-type]
    return [(turn.prompt.text, turn.text) for turn in chat.turns(conversation)]


def raw(messages: list[dict[str, object]]) -> str:
    """What the template alone makes of messages."""
    return jinja2.Environment().from_string(templates()[NAME]).render(messages=messages, bos_token=BOS)


def test_the_prompt_opens_the_thought(chat: Chat) -> None:
    assert chat.prompt([ASK]).text == f"{BOS}<｜User｜>2+2?<｜Assistant｜><think>\n"


@pytest.mark.parametrize("turn", [TRACE, Message("assistant", "4", reasoning="add")], ids=["inline", "field"])
def test_reasoning_is_trained_although_the_template_drops_it(chat: Chat, turn: Message) -> None:
    assert "add" not in raw([ASK.for_template(), TRACE.for_template()])
    ((prompt, text),) = trained(chat, ASK, turn)
    assert prompt.endswith("<｜Assistant｜><think>\n")
    assert text == f"add\n</think>\n\n4{EOS}"


def test_the_first_tokens_of_the_answer_are_trained_too(chat: Chat) -> None:
    (turn,) = chat.turns(Conversation((ASK, TRACE)))
    assert chat.decode(turn.ids) == f"add\n</think>\n\n4{EOS}"
    assert turn.row.weights_T.tolist() == [1.0] * len(turn.ids)


def test_what_was_trained_is_read_back_with_only_the_closing_tag(chat: Chat) -> None:
    (turn,) = chat.turns(Conversation((ASK, TRACE)))
    answer = chat.parse(turn.ids, turn.prompt)
    assert (answer.message.reasoning, answer.message.content) == ("add", "4")
    assert answer.ended_whole


def test_an_answer_without_a_thought_is_refused_and_can_be_asked_for(chat: Chat) -> None:
    with pytest.raises(TemplateError, match=r"traces\.jsonl:5, message 2 .*opens a thought \(<think>\).*Add `reasoning`.*nothing between"):
        trained(chat, ASK, Message("assistant", "4"))
    ((_, text),) = trained(chat, ASK, Message("assistant", "<think></think>4"))
    assert text == f"\n</think>\n\n4{EOS}"


def test_old_reasoning_leaves_the_history_and_the_rows_branch(chat: Chat) -> None:
    first, second = trained(chat, ASK, TRACE, Message("user", "3+3?"), Message("assistant", "6", reasoning="again"))
    assert "add" not in second[0]
    assert not second[0].startswith(first[0] + first[1])
    assert second[1] == f"again\n</think>\n\n6{EOS}"


def test_thinking_cannot_be_switched_off_by_an_argument_that_changes_nothing(chat: Chat) -> None:
    with pytest.raises(TemplateError, match="does not read the template argument `enable_thinking`"):
        chat.prompt([ASK], (), {"enable_thinking": False})


def test_calls_with_empty_content_are_not_dropped(chat: Chat) -> None:
    turn = Message("assistant", reasoning="look", tool_calls=CALLS)
    assert "add" not in raw([ASK.for_template(), turn.for_template()])
    ((_, text),) = trained(chat, ASK, turn)
    assert text.startswith("look\n</think>\n\n<｜tool▁calls▁begin｜>")
    assert text.count("<｜tool▁sep｜>add\n```json\n") == 2
    assert text.endswith(f"<｜tool▁calls▁end｜>{EOS}")


def test_arguments_as_an_object_are_written_as_json(chat: Chat) -> None:
    with pytest.raises(TypeError):
        raw([ASK.for_template(), {**Message("assistant", tool_calls=CALLS).for_template(), "content": None}])
    ((_, text),) = trained(chat, ASK, Message("assistant", reasoning="look", tool_calls=CALLS))
    assert '```json\n{"a": 2}\n```' in text


def test_a_single_call_that_the_template_never_closes_is_refused(chat: Chat) -> None:
    with pytest.raises(TemplateError, match=r"traces\.jsonl:5, message 2 .*'.*<｜tool▁call▁end｜>', which is no stop token"):
        trained(chat, ASK, Message("assistant", reasoning="look", tool_calls=CALLS[:1]))
    assert chat.turn_end == chat.tokens.id_of(EOS)
    assert chat.tokens.id_of("<｜tool▁call▁end｜>") not in chat.stop_ids


def test_words_beside_calls_are_not_dropped_in_silence(chat: Chat) -> None:
    with pytest.raises(TemplateError, match="calls of a turn: that of 'add' is not in the rendered turn"):
        trained(chat, ASK, Message("assistant", "I add.", reasoning="look", tool_calls=CALLS))
    with pytest.raises(TemplateError, match=r"calls of a turn: that of 'add' in message 2 is not in the prompt"):
        chat.prompt([ASK, Message("assistant", "I add.", tool_calls=CALLS), Message("tool", "5", tool_call_id="a1b2c3d4e"), ASK])


def test_a_message_without_content_renders(chat: Chat) -> None:
    with pytest.raises(jinja2.UndefinedError):
        raw([ASK.for_template(), {"role": "assistant"}])
    assert chat.prompt([ASK, Message("assistant", weight=0.0), ASK]).text.endswith("<think>\n")


def test_the_first_of_two_system_messages_is_not_lost_in_silence(chat: Chat) -> None:
    with pytest.raises(TemplateError, match=r"drops message 1 \(system\).*Join the system messages into one"):
        chat.prompt([Message("system", "Speak of sums."), Message("system", "Be brief."), ASK])
    assert chat.prompt([Message("system", "Be brief."), ASK]).text == f"{BOS}Be brief.<｜User｜>2+2?<｜Assistant｜><think>\n"


def edited(path: Path, **files: dict[str, object]) -> Path:
    """A copy of the folder with entries of its JSON files changed."""
    copytree(folder(NAME), path)
    for name, entries in files.items():
        file = path / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **entries}), encoding="utf-8")
    return path


def test_padding_that_is_the_end_token_does_no_harm(tmp_path: Path) -> None:
    chat = Chat.load(edited(tmp_path / "m", tokenizer_config={"pad_token": EOS}))
    (row,) = chat.example(Conversation((ASK, TRACE))).rows
    assert chat.decode([int(row.completion_T[-1])]) == EOS
    assert row.weights_T[-1] == 1.0
    assert any(EOS in finding.sentence and "harmless" in finding.sentence for finding in examine(chat))


def test_bos_stands_once_although_the_tokenizer_adds_one_too(tmp_path: Path) -> None:
    path = edited(tmp_path / "m")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    tokenizer.save(str(path / "tokenizer.json"))
    assert tokenizer.encode(f"{BOS}a").ids.count(bos) == 2
    (row,) = Chat.load(path).example(Conversation((ASK, TRACE))).rows
    assert row.inputs_T.tolist().count(bos) == 1
    assert row.inputs_T[0] == bos


def test_the_first_token_is_the_tokenizers_whatever_config_says(tmp_path: Path) -> None:
    chat = Chat.load(edited(tmp_path / "m", config={"bos_token_id": 3}))
    assert chat.prompt([ASK]).ids[0] == chat.tokens.id_of(BOS)


def test_a_tokenizer_that_loses_spaces_is_found(tmp_path: Path) -> None:
    path = edited(tmp_path / "m")
    content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
    (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    found = [finding for finding in examine(Chat.load(path)) if "unchanged" in finding.sentence or "letters" in finding.sentence]
    assert any(finding.severity != "ok" for finding in found), found


def test_the_tags_are_single_tokens_that_stay_text(chat: Chat) -> None:
    (turn,) = chat.turns(Conversation((ASK, TRACE)))
    assert chat.tokens.id_of("</think>") in turn.ids
    assert chat.tokens.id_of("</think>") not in chat.tokens.special_ids


def test_how_its_makers_sample_is_told(tmp_path: Path) -> None:
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    (found,) = (finding for finding in examine(Chat.load(edited(tmp_path / "m", generation_config=sampling))) if finding.kind == "sampling")
    assert found.sentence.startswith("Its makers sample at temperature 0.6 and top_p 0.95. ")
    assert found.sentence.endswith("sapwood chat --temperature 0.6 --top-p 0.95.")
    assert not [finding for finding in examine(Chat.load(folder(NAME))) if finding.kind == "sampling"]
