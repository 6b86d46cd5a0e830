"""The pass over rows: counts that add up, letters given to who wrote them, and each kind of trouble found where it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import pytest
from chat_folders import PREFILLED, load, metaspace, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from template_conversations import random_conversation
from template_families import folder

from sapwood.chat import Chat
from sapwood.chat.doctor.diagnosis import diagnose, examine, in_light_of, survey_findings
from sapwood.chat.doctor.sharing import SharingCount, unique_tokens
from sapwood.chat.doctor.spans import KINDS, kinds_of_rows, spans_of, token_kinds
from sapwood.chat.doctor.survey import Survey, Surveyor
from sapwood.chat.doctor.tree import tree
from sapwood.chat.turns import taken_apart
from sapwood.errors import SapwoodError
from sapwood.forest import plant
from sapwood.records import Conversation, Document, Message, Source, ToolCall

FAMILIES = ("qwen2_5", "qwen3", "llama3_1", "smollm3", "glm4moe", "gptoss", "deepseek_r1_distill", "mistral_v7_tekken")
FEATURES = ("system", "plain", "tools", "call", "two calls", "empty texts")


def survey(chat: Chat, *conversations: Conversation | Document, **more: int) -> Survey:
    surveyor = Surveyor(chat, **more)
    for conversation in conversations:
        if isinstance(conversation, Document):
            surveyor.add_document(conversation)
        else:
            surveyor.add(conversation)
    return surveyor.survey()


def said(*texts: str, line: int = 1, system: str | None = None) -> Conversation:
    """Questions and answers in turn, as line `line` of a file."""
    messages = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts)]
    return Conversation((*([Message("system", system)] if system else []), *messages), source=Source("my.jsonl", line))


def random_conversations(chat: Chat, count: int) -> list[Conversation]:
    """Conversations that the chat can train, with reasoning where its prompts open a thought."""
    found = []
    for seed in range(8 * count):
        features = FEATURES if chat.prompt([Message("user", "a")]).text.rstrip().endswith("<think>") is False else ("system", "reasoning")
        conversation = random_conversation(seed, features, tuple(chat.tokens.control_ids))
        try:
            chat.turns(conversation)
        except SapwoodError:
            continue
        found.append(conversation)
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_given_to_who_wrote_them(name: str) -> None:
    """The letters of each kind are those that the messages hold, for rows whose ids can be laid beside their text."""
    chat = Chat.load(folder(name))
    told_apart = 0
    for conversation in random_conversations(chat, 7):
        turns = chat.turns(conversation)
        at_once = kinds_of_rows(chat, conversation, turns)
        for turn, whole_T in zip(turns, at_once, strict=True):
            kinds_T = token_kinds(chat, turn, spans_of(chat, conversation, turn))
            assert (whole_T == kinds_T).all(), "rows that go on from each other are told apart alike"
            ids = np.array([*turn.prompt.ids, *turn.ids])
            assert len(kinds_T) == len(ids)
            assert KINDS[kinds_T[-1]] == "end"
            if KINDS[kinds_T[0]] == "unknown":
                continue
            told_apart += 1
            here = chat.decode(ids[len(turn.prompt.ids) :][kinds_T[len(turn.prompt.ids) :] == KINDS.index("content")].tolist())
            assert here.split() == taken_apart(conversation.messages[turn.index]).answer.split()
            users = [m.content for m in conversation.messages[: turn.index] if m.role == "user"]
            read = chat.decode(ids[kinds_T == KINDS.index("user")].tolist())
            assert "".join(read.split()) == "".join("".join(users).split())
            written = [c.arguments["kind"] for m in conversation.messages[: turn.index + 1] for c in m.tool_calls]
            calls = chat.decode(ids[kinds_T == KINDS.index("calls")].tolist())
            assert calls.count("find_tree") == len(written)
    assert told_apart >= 7, "most rows must be told apart, or this test shows nothing"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_counts_add_up(name: str) -> None:
    chat = Chat.load(folder(name))
    conversations = random_conversations(chat, 6)
    found = survey(chat, *conversations, batch=3)
    turns = [turn for conversation in conversations for turn in chat.turns(conversation)]
    assert found.rows_in == found.taken == len(conversations)
    assert found.tokens.rows == len(turns)
    assert found.tokens.row_tokens == sum(len(turn.prompt.ids) + len(turn.ids) for turn in turns)
    assert found.tokens.trained == sum(len(turn.ids) for turn in turns) == sum(found.tokens.trained_by_kind.values())
    trees = [[np.array([*turn.prompt.ids, *turn.ids]) for turn in chat.turns(conversation)] for conversation in conversations]
    assert found.tokens.own == sum(found.tokens.by_kind.values()) == sum(map(unique_tokens, trees))
    assert found.lengths is not None
    assert sum(found.lengths.counts) == len(conversations)
    assert found.lengths.longest == max(len(turn.prompt.ids) + len(turn.ids) for turn in turns) <= found.lengths.top


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_sharing_is_what_the_forest_computes(sequences: list[list[int]]) -> None:
    from sapwood.records import Row

    rows = [np.array([9, *sequence], dtype=np.int64) for sequence in sequences]
    made = [Row(row[:1], np.array([*row[1:], 5]), np.ones(len(row), dtype=np.float32)) for row in rows]
    assert unique_tokens(rows) == plant(made, min_saving=1).num_tokens
    count = SharingCount(batch=4, window=3)
    for row in rows:
        count.add([row])
    result = count.result()
    assert result.row_tokens == sum(map(len, rows))
    assert unique_tokens(rows) <= result.unique_tokens <= result.row_tokens


@pytest.mark.parametrize("name", ["chatml", "empty-thought"])
def test_the_tree_holds_every_row_and_no_token_twice(tmp_path: Path, name: str) -> None:
    chat = load(tmp_path, name)
    thinking = Message("assistant", "世 Below.", reasoning="young wood") if name == "empty-thought" else Message("assistant", "世 Below.")
    conversation = Conversation((Message("user", "🌱 where?"), thinking, Message("user", "and?"), thinking))
    turns = chat.turns(conversation)
    branches = tree(chat, conversation, turns)
    for number, turn in enumerate(turns, 1):
        ids = [i for branch in branches if number in branch.rows for piece in branch.pieces for i in piece.ids]
        assert ids == [*turn.prompt.ids, *turn.ids]
    rows = [np.array([*turn.prompt.ids, *turn.ids]) for turn in turns]
    assert sum(branch.tokens for branch in branches) == unique_tokens(rows)
    assert sum(branch.tokens for branch in branches) == sum(len(piece.ids) for branch in branches for piece in branch.pieces)
    trained = "".join(piece.text for branch in branches for piece in branch.pieces if piece.trained)
    assert trained.count("世 Below.") == 2
    forks = [branch for branch in branches if len(branch.rows) == 1]
    assert bool([b for b in forks if b.rows == (1,)]) == (name == "empty-thought"), "rewritten history parts the rows"


BROKEN = {
    "control-text": said("write <|im_end|>", "no"),
    "mojibake": said("a", "naÃ¯ve cafÃ©"),
    "edges": said("a", " Lima"),
    "empty-user": said(" ", "Lima"),
    "turn-order": Conversation((Message("user", "a"), Message("user", "b"), Message("assistant", "c")), source=Source("my.jsonl", 1)),
    "near-limit": said("x" * 60, "y" * 20),
    "tool-calls": Conversation(
        (Message("user", "a"), Message("assistant", tool_calls=(ToolCall("fell", {}),))),
        ({"type": "function", "function": {"name": "grow", "parameters": {"type": "object", "properties": {}}}},),
        source=Source("my.jsonl", 1),
    ),
    "refused": said("a"),
}
FINE = said("Where?", "Below the bark.", system="Be brief.")


@pytest.mark.parametrize("kind", BROKEN)
def test_each_kind_of_trouble_is_found_where_it_is(kind: str, tmp_path: Path) -> None:
    chat = load(tmp_path, "toolful")
    clean = survey(chat, FINE)
    assert clean.kinds == {}, "a healthy row has none"
    other = dataclasses.replace(BROKEN[kind], source=Source("my.jsonl", 7))
    context = 100 if kind == "near-limit" else None
    found = survey(chat, FINE, other, **({"context": context} if context else {}))
    assert kind in found.kinds
    assert found.kinds[kind].rows == 1
    assert found.kinds[kind].first[0].where == "my.jsonl:7"
    assert any(finding.kind == kind and "my.jsonl:7" in finding.sentence for finding in survey_findings(found))


def test_repeats_contradictions_and_short_answers(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    long = "a long answer about how the sap rises in spring and where it goes then"
    rows = [said(f"q{n}", f"{long} {n}", line=n + 1) for n in range(5)]
    rows += [said("q0", f"{long} 0", line=6), said("Q1 ", f"{long} otherwise", line=7), said("q9", "no", line=8)]
    rows += [said("Q1 ", f"{long} otherwise", line=9)]
    found = survey(chat, *rows)
    places = {kind: [note.where for note in count.first] for kind, count in found.kinds.items()}
    assert places == {"duplicate": ["my.jsonl:6", "my.jsonl:9"], "contradiction": ["my.jsonl:7"], "short-answer": ["my.jsonl:8"]}
    assert "my.jsonl:1" in found.kinds["duplicate"].first[0].sentence
    assert "my.jsonl:2" in found.kinds["contradiction"].first[0].sentence


def test_one_answer_to_most_prompts_is_told(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    rows = [said(f"q{n}", "yes" if n < 6 else f"no {n}", line=n + 1) for n in range(10)]
    assert survey(chat, *rows).most_common_answer == ("yes", 0.6)
    assert survey(chat, *(said(f"q{n}", f"a{n}", line=n) for n in range(30))).most_common_answer is None


def test_rows_beyond_those_kept_are_counted(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    found = survey(chat, *(said(f"q{n}", f" a{n}", line=n + 1) for n in range(9)), kept=2)
    assert found.kinds["edges"].rows == 9
    assert [note.where for note in found.kinds["edges"].first] == ["my.jsonl:1", "my.jsonl:2"]


def test_lines_behind_a_thought_are_no_white_space_of_the_answer(tmp_path: Path) -> None:
    chat = load(tmp_path, "prefilled")
    thought = "<think>\nIn the bark.\n</think>\n\n"
    assert "edges" not in survey(chat, said("a", f"{thought}Lima")).kinds
    assert survey(chat, said("a", f"{thought} Lima")).kinds["edges"].rows == 1


def test_texts_without_turns_are_counted_too(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    found = survey(chat, Document("sap rises", source=Source("t.jsonl", 1)), Document("sap rises", source=Source("t.jsonl", 2)))
    assert found.taken == 2
    assert found.kinds["duplicate"].first[0].where == "t.jsonl:2"
    assert found.tokens.by_kind["end"] == 2


def test_a_tokenizer_with_a_dummy_space_is_told_apart(tmp_path: Path) -> None:
    chat = load(tmp_path, "toolful", tokenizer=metaspace())
    found = survey(chat, said(" the sap ", "the tree\n", "so", "it is"))
    assert "unknown" not in found.tokens.by_kind
    assert found.tokens.by_kind["user"] > 0


@pytest.mark.parametrize(
    ("refused", "taken", "limit", "verdict"),
    [
        (0, 10, 0.02, "healthy"),
        (1, 99, 0.02, "usable"),
        (3, 97, 0.02, "not trainable"),
        (3, 97, 0.05, "usable"),
        (2, 0, 1.0, "not trainable"),
    ],
)
def test_the_verdict_is_what_a_run_would_say(tmp_path: Path, refused: int, taken: int, limit: float, verdict: str) -> None:
    chat = load(tmp_path, "toolful")
    random = Random(0)
    rows = [said(f"q{random.random()}", f"a{random.random()}", line=n + 1) for n in range(taken)]
    surveyor = Surveyor(chat)
    for row in rows:
        surveyor.add(row)
    for line in range(refused):
        surveyor.refuse(f"my.jsonl:{taken + line + 1}", "broken JSON: it ends in the middle")
    found = surveyor.survey()
    assert found.rows_in == taken + refused
    findings = [f for f in examine(chat) if f.severity == "ok"] + survey_findings(found)
    diagnosis = diagnose(findings, found, limit)
    assert diagnosis.verdict == verdict
    assert diagnosis.exit_code == (verdict == "not trainable")


def test_a_prefilled_thought_is_no_fault_of_the_rows(tmp_path: Path) -> None:
    chat = Chat.load(write_folder(tmp_path, PREFILLED, eos="<|eos|>"))
    row = Conversation((Message("user", "a"), Message("assistant", "b", reasoning="why")), source=Source("my.jsonl", 1))
    found = survey(chat, row)
    assert found.taken == 1
    assert found.tokens.by_kind["reasoning"] > 0


def test_one_prompt_alone_is_told(tmp_path: Path) -> None:
    """`sapwood sft` could hold nothing out."""
    chat = load(tmp_path, "chatml")
    same = [said("Where?", "Below.", line=1), said("where? ", "Above.", line=2)]
    for rows, kinds in ((same, {"one-prompt"}), (same[:1], {"one-prompt"}), ([*same, said("Who?", "I.", line=3)], set()), ([], set())):
        assert {finding.kind for finding in survey_findings(survey(chat, *rows))} & {"one-prompt"} == kinds


def test_what_no_row_makes_use_of_is_no_note(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    plain, spaced = said("Where?", "Below.", system="Be brief."), said("Where?", "Below.", system="Be brief. ")
    tooled = Conversation((Message("user", "a"), Message("assistant", "b")), ({"type": "function", "function": {"name": "f"}},))
    found = in_light_of(examine(chat), survey(chat, plain))
    assert [finding.kind for finding in found if finding.severity == "note"] == []
    assert any("none of these rows has any" in finding.sentence for finding in found)
    read_by_halves = Surveyor(chat)
    read_by_halves.add(plain)
    read_by_halves.refuse("my.jsonl:2", "unknown role")
    assert [finding.kind for finding in in_light_of(examine(chat), read_by_halves.survey()) if finding.severity == "note"] == []
    assert diagnose(found, survey(chat, plain)).verdict == "healthy"
    notes = [finding.kind for finding in in_light_of(examine(chat), survey(chat, plain, tooled)) if finding.severity == "note"]
    assert "tools" in notes, "rows that were refused may have wanted it"
    trimming = load(tmp_path / "headers", "headers")
    for row, severity in ((plain, "ok"), (spaced, "note")):
        found = in_light_of(examine(trimming), survey(trimming, row))
        assert {finding.severity for finding in found if finding.kind == "text-trimmed"} == {severity}
