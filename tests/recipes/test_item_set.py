"""Items from logs: what is read, masked, clustered, kept apart, sampled, made and split, each held to what it promises."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sapwood.cli.main import main
from sapwood.data import read
from sapwood.data.alike import Shelf, contamination, likeness, pieces
from sapwood.data.masking import Mask
from sapwood.errors import ConfigError, DataError
from sapwood.evaluate import exact, item_records, items_from
from sapwood.evaluate.edge_cases import KEEPS, KINDS, OPEN, edge_cases
from sapwood.recipes.item_set import ItemsConfig, build_items, looked
from sapwood.recipes.logs import conversations_of_logs
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt
from sapwood.run import read_records

THINGS = ("parcel", "invoice", "password", "contract", "delivery", "refund", "voucher", "account", "printer", "garden")
VERBS = ("lost", "broken", "late", "wrong", "missing", "expired", "blocked", "unreadable", "double", "cancelled")


def question(n: int) -> str:
    other = f"{VERBS[(n * 7) % 10]} {THINGS[(n * 3) % 10]}"
    return f"My {THINGS[n % 10]} is {VERBS[n // 10 % 10]} since day {n}, what shall I do about the {other}?"


def logs(file: Path, count: int = 100, **more: Any) -> Path:
    rows = [{"messages": turns(question(n), f"Answer {n}"), "tags": ["easy" if n % 3 else "odd"], **more} for n in range(count)]
    file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return file


def turns(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def built(tmp_path: Path, **more: Any) -> dict[str, Any]:
    given = {"logs": (str(logs(tmp_path / "logs.jsonl")),), "out": tmp_path / "items", **more}
    return build_items(ItemsConfig(**given)).card


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    return [row for side in ("dev", "test") for row in read_records(tmp_path / "items" / f"{side}.jsonl")]


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("write to ann.b+c@mail.example.org now", "write to [EMAIL_1] now"),
        ("a@b.de and c@d.de and a@b.de", "[EMAIL_1] and [EMAIL_2] and [EMAIL_1]"),
        ("call +49 30 1234567 or 0151-2345678", "call [PHONE_1] or [PHONE_2]"),
        ("card 4111 1111 1111 1111.", "card [CARD_1]."),
        ("card 4111 1111 1111 1112", "card 4111 1111 1111 1112"),
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN [IBAN_1]"),
        ("IBAN DE88 3704 1144 1532 1130 11", "IBAN DE88 3704 1144 1532 1130 11"),
        ("from 192.168.0.12 to 999.1.1.1", "from [IP_1] to 999.1.1.1"),
        ("key sk-abcdefghijklmnop1234", "key [KEY_1]"),
        ("12 apples for 3.50 on 2024-05-06, order 123456", "12 apples for 3.50 on 2024-05-06, order 123456"),
    ],
)
def test_personal_data_is_masked_and_numbers_are_not(text: str, covered: str) -> None:
    assert Mask().cover(text) == covered


@settings(max_examples=40)
@given(st.text(alphabet="abcdefghij ", min_size=30, max_size=120), st.integers(0, 3))
def test_near_texts_are_found_and_far_ones_are_not(text: str, changes: int) -> None:
    changed = text[: len(text) - changes]
    shelf = Shelf([text, "something else entirely, with 1234567890 and other words in it"])
    alike = likeness(pieces(text), pieces(changed))
    found = dict(shelf.near(changed, 0.8))
    assert 1 not in found
    if alike >= 0.9:
        assert found[0] == alike


def test_clusters_are_what_all_pairs_would_give() -> None:
    rng = np.random.default_rng(0)
    texts = [question(int(n)) for n in rng.integers(0, 60, 80)] + [question(n) + " please" for n in range(20)]
    expected = list(range(len(texts)))
    for b in range(len(texts)):
        for a in range(b):
            if likeness(pieces(texts[a]), pieces(texts[b])) >= 0.8:
                low, high = sorted((expected[a], expected[b]))
                expected = [low if one == high else one for one in expected]
    assert Shelf(texts).clusters(0.8) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 + 7?", "What is 12 - 7?"),
        ("12*7", "12/7"),
        ("What is C++?", "What is C#?"),
        ("😀", "💔"),
        ("???", "…!"),
        ("Is it 5 %?", "Is it 5 €?"),
        ("लड़की क्या है", "लड़का क्या है"),
    ],
)
def test_signs_that_say_something_tell_questions_apart(one: str, other: str) -> None:
    """Neither a copy of the other for a set of items, nor trained on because the other was."""
    assert Shelf([one, other]).clusters(0.99) == [0, 1]
    assert contamination([other], 0.99)(one) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 + 7?", "**What is  12+7**"),
        ("# Refunds – when?", "Refunds: When"),
        ("“Café” costs", "'Cafe\u0301' costs!"),
        ("１２ kg", "12 KG."),
        ("😀 hi", "😀, Hi!"),
    ],
)
def test_looks_alone_make_no_other_question(one: str, other: str) -> None:
    assert contamination([other])(one) == "normalised"


def test_levels_of_contamination() -> None:
    long = " ".join(f"word{n}" for n in range(40))
    level = contamination(["How do I get my money back?", long, "The quick brown fox jumps over the lazy dog today"])
    assert level("How do I get my money back?") == "exact"
    assert level("how do i get my  MONEY back") == "normalised"
    assert level("So: " + " ".join(f"word{n}" for n in range(5, 20)) + " and then something else") == "n-gram"
    assert level("The quick brown fox jumps over the lazy dog todays") == "near"
    assert level("Where is the station?") is None


def test_a_set_is_masked_clustered_sampled_and_split(tmp_path: Path) -> None:
    file = logs(tmp_path / "logs.jsonl")
    extra = [
        {"messages": turns(question(5) + " Please.", "Answer 5")},
        {"messages": turns(question(7), "Answer 7"), "tags": ["easy"]},
        {"messages": turns("My mail is ann@mail.org, and nobody answers.", "ok")},
    ]
    file.write_bytes(file.read_bytes() + b"\n" + b"\n".join(map(orjson.dumps, extra)))
    card = build_items(ItemsConfig(logs=(str(file),), out=tmp_path / "items", count=60)).card
    assert (card["read"], card["copies"], card["masked"], card["real"]) == (103, 1, {"EMAIL": 1}, 60)
    assert card["near_duplicates"] >= 1
    rows = rows_of(tmp_path)
    assert len(rows) == 60 == sum(card["sides"].values())
    assert "ann@mail.org" not in json.dumps(rows)
    assert {row["set"] for row in rows} == {card["version"]}
    assert all("source:real" in row["tags"] and row["source"].startswith(str(file)) for row in rows)
    odd = sum("odd" in row["tags"] for row in rows)
    assert odd >= 20, "evenly over the strata, not as the log has them"
    assert [one.messages[-1].role for one in read([tmp_path / "items" / "test.jsonl"]).conversations] == ["assistant"] * card["sides"][
        "test"
    ]
    with pytest.raises(ConfigError, match="holds a set of items"):
        build_items(ItemsConfig(logs=(str(file),), out=tmp_path / "items"))


def test_a_side_that_nothing_fell_to_is_told(tmp_path: Path) -> None:
    """One question has one side; a study of the other would fail on an empty file."""
    one = build_items(ItemsConfig(logs=(str(logs(tmp_path / "one.jsonl", 1)),), out=tmp_path / "one"))
    empty = next(side for side, count in one.card["sides"].items() if count == 0)
    assert one.notes[-1].startswith(
        f"Nothing is on the {empty} side: a question and all that is like it go to one side together, and 1 are"
    )
    many = build_items(ItemsConfig(logs=(str(logs(tmp_path / "many.jsonl", 40)),), out=tmp_path / "many"))
    assert not any("Nothing is on" in note for note in many.notes)


def test_no_cluster_is_on_both_sides_and_who_joins_moves_nobody(tmp_path: Path) -> None:
    built(tmp_path, edge=("all",), edge_each=10)
    sides = {side: read_records(tmp_path / "items" / f"{side}.jsonl") for side in ("dev", "test")}
    clusters = {side: {row["cluster"] for row in rows} for side, rows in sides.items()}
    assert not clusters["dev"] & clusters["test"]
    assert 0.1 < len(clusters["dev"]) / len(clusters["dev"] | clusters["test"]) < 0.5
    build_items(ItemsConfig(logs=(str(logs(tmp_path / "more.jsonl", 140)),), out=tmp_path / "later"))
    later = {row["cluster"] for row in read_records(tmp_path / "later" / "dev.jsonl")}
    assert not later & clusters["test"]


def test_what_is_trained_on_is_left_out_or_tagged(tmp_path: Path) -> None:
    train = logs(tmp_path / "train.jsonl", 10)
    card = built(tmp_path, train=(str(train),))
    assert card["seen_in_training"]["exact"] == 10
    assert not any(row["messages"][0]["content"] == question(3) for row in rows_of(tmp_path))
    card = built(tmp_path, train=(str(train),), keep_seen=True, out=tmp_path / "kept")
    assert card["tags"]["seen:exact"] == 10


def test_hard_is_what_cheap_models_disagree_on(tmp_path: Path) -> None:
    file = logs(tmp_path / "logs.jsonl")
    items = items_from(read([file]).conversations)
    (tmp_path / "cheap").mkdir()
    scores = [{"arm": arm, "item": item.id, "value": float(arm == "a" and n < 7)} for n, item in enumerate(items) for arm in "ab"]
    (tmp_path / "cheap" / "scores.jsonl").write_bytes(b"\n".join(map(orjson.dumps, scores)))
    assert built(tmp_path, hard_by=(str(tmp_path / "cheap"),))["tags"]["hard"] == 7
    with pytest.raises(ConfigError, match=r"holds no scores\.jsonl"):
        built(tmp_path, hard_by=(str(tmp_path),), out=tmp_path / "other")

    nothing = tmp_path / "others"
    nothing.mkdir()
    (nothing / "scores.jsonl").write_bytes(orjson.dumps({"arm": "a", "item": "0" * 16, "value": 1.0}))
    with pytest.raises(ConfigError, match="none of these 100 questions was asked"):
        built(tmp_path, hard_by=(str(nothing),), out=tmp_path / "another")


def test_calls_and_thoughts_are_masked_too_and_what_a_set_cannot_hold_is_told(tmp_path: Path) -> None:
    call = {"id": "1", "function": {"name": "send", "arguments": {"to": ["ann@mail.org"], "note": {"by": "bob@mail.org"}, "times": 2}}}
    answer = {"role": "assistant", "content": "", "reasoning_content": "ann@mail.org it is", "tool_calls": [call]}
    asked = {"role": "user", "content": "Write to ann@mail.org, please."}
    sounds = {"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]}
    file = tmp_path / "calls.jsonl"
    rows = [
        {"messages": [asked, answer], "template_arguments": {"enable_thinking": True}},
        {"messages": [sounds, {"role": "assistant", "content": "A cat."}]},
    ]
    file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    card = build_items(ItemsConfig(logs=(str(file),), out=tmp_path / "items")).card
    assert card["unread"] == {"with images or sounds, which a set does not hold": 1}
    (row,) = rows_of(tmp_path)
    assert "@mail.org" not in json.dumps(row)
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"to": ["[EMAIL_1]"], "note": {"by": "[EMAIL_2]"}, "times": 2}
    assert row["template_arguments"] == {"enable_thinking": True}


def an_item() -> Item:
    asked = Conversation((Message("system", "Be brief."), Message("user", "How many eggs did Anna buy on the 3rd of May for 12 euros?")))
    return Item(asked, "12", tags=("source:real",))


def test_edge_cases_keep_what_they_may_and_invent_no_answer() -> None:
    item = an_item()
    made = {item.tags[-1].removeprefix("edge:"): item for item in edge_cases(item)}
    assert set(made) == set(KINDS)
    for kind, variant in made.items():
        assert variant.conversation.messages[0] == item.conversation.messages[0]
        assert variant.conversation.messages[1].content != item.conversation.messages[1].content
        assert variant.reference == ("12" if kind in KEEPS else None)
        assert variant.cluster == item.id
        assert "source:real" not in variant.tags
    assert edge_cases(item) == edge_cases(item), "the same item, the same variants"
    assert Counter(one.tags[-1] for one in edge_cases(item, ("typos",))) == {"edge:typos": 1}
    answer = Completion(Prompt((), (), ""), (), "12", Ended.STOP)
    for kind in OPEN:
        assert exact()(made[kind], answer).value != 1
    assert edge_cases(Item(Conversation((Message("system", "x"),)), None)) == []


def test_logs_of_openai_and_of_our_own_server(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": "Book it"}]}]
    call = {"id": "1", "type": "function", "function": {"name": "book", "arguments": '{"seat": 4}'}}
    choices = [{"message": {"role": "assistant", "content": None, "tool_calls": [call]}}]
    rows = [
        {"request": {"messages": asked, "tools": [{"type": "function", "function": {"name": "book"}}]}, "response": {"choices": choices}},
        {"custom_id": "1", "body": {"messages": asked}, "response": {"body": {"choices": choices}}},
        {"messages": asked, "choices": choices},
        {"question": {"request": {"messages": asked}}, "answer": {"choices": choices}},
        {"request": {"messages": asked}},
        {"something": "else"},
        {"request": {"messages": [{"content": 3}]}, "response": {"choices": choices}},
    ]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    found, unread = conversations_of_logs([str(tmp_path / "log.jsonl")])
    assert len(found) == 4
    assert found[0].messages[0].content == "Book it"
    assert found[0].messages[1].tool_calls[0].arguments == {"seat": 4}
    assert found[0].tools
    assert sum(unread.values()) == 3
    assert sum(unread.values()) + len(found) == len(rows), "nothing is passed over in silence"
    with pytest.raises(DataError, match="no such file"):
        conversations_of_logs([str(tmp_path / "none.jsonl")])


def test_looks_are_counted(tmp_path: Path) -> None:
    built(tmp_path)
    assert [looked(tmp_path / "items") for _ in range(3)] == [1, 2, 3]
    assert looked(tmp_path) == 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"edge": ("typo",)}, "Did you mean 'typos'"),
        ({"count": 0}, "count is 0"),
        ({"dev": 1.0}, "dev is 1.0"),
        ({"alike": 0.0}, "alike is 0.0"),
        ({"edge_each": 0}, "edge_each is 0"),
        ({"logs": ()}, "No logs are named"),
    ],
)
def test_odd_settings(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        built(tmp_path, **changed)


def test_each_knob_changes_the_set(tmp_path: Path) -> None:
    plain = built(tmp_path)["version"]
    knobs: list[dict[str, Any]] = [{"count": 30}, {"dev": 0.6}, {"alike": 0.3}, {"edge": ("typos",)}, {"seed": 1, "count": 50}]
    versions = [built(tmp_path, **knob, out=tmp_path / f"set-{n}")["version"] for n, knob in enumerate(knobs)]
    assert plain not in versions
    assert len(set(versions)) == len(knobs)
    few = built(tmp_path, edge=("typos",), edge_each=5, out=tmp_path / "few")
    assert few["edge"] == 5
    file = tmp_path / "mail.jsonl"
    file.write_bytes(orjson.dumps({"messages": turns("I am ann@mail.org", "ok")}))
    open_ = build_items(ItemsConfig(logs=(str(file),), out=tmp_path / "open", mask=False)).card
    assert open_["masked"] == {}


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.chdir(tmp_path)
    logs(Path("logs.jsonl"))
    assert main(["items", "build", "logs.jsonl", "--edge", "typos", "--json"]) == 0
    assert orjson.loads(capsysbinary.readouterr().out)["edge"] == 20
    assert main(["items", "biuld", "logs.jsonl"]) == 2
    assert b"Did you mean 'build'" in capsysbinary.readouterr().err


def test_two_studies_that_begin_at_once_are_two_looks(tmp_path: Path) -> None:
    built(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: looked(tmp_path / "items"), range(24)))
    assert sorted(counts) == list(range(1, 25))
    assert looked(tmp_path) == 0, "a folder that is no set"


def test_items_say_how_many_queries_they_stand_for(tmp_path: Path) -> None:
    """30 queries of a rare kind and 80 of a common one, of which 11 ask the same: an even sample, whose weights give the mix back."""
    file = tmp_path / "logs.jsonl"
    rows = [{"messages": turns(question(n), f"Answer {n}"), "tags": ["rare" if n < 30 else "common"]} for n in range(100)]
    file.write_bytes(b"\n".join(map(orjson.dumps, [*rows, *rows[-1:] * 10])))
    card = build_items(ItemsConfig(logs=(str(file),), out=tmp_path / "items", count=40, edge=("typos",), edge_each=5)).card
    kept = rows_of(tmp_path)
    real = [row for row in kept if "source:real" in row["tags"] and "edge:typos" not in row["tags"]]
    share = {kind: sum(row["stands_for"] for row in real if kind in row["tags"]) for kind in ("rare", "common")}
    assert share == {"rare": pytest.approx(30, abs=0.01), "common": pytest.approx(80, abs=0.01)}
    assert (card["stand_for"], card["of_queries"]) == (110, 110)
    assert sum("rare" in row["tags"] for row in real) > 15, "evenly over the strata"
    made = [row for row in kept if "edge:typos" in row["tags"]]
    assert made
    assert not any("stands_for" in row for row in made), "nobody asked an edge case"
    assert any(record.get("stands_for") for record in item_records(items_from(read([tmp_path / "items" / "test.jsonl"]).conversations)))
    few = build_items(ItemsConfig(logs=(str(file),), out=tmp_path / "few", count=1))
    assert any("queries are of kinds of which none was drawn" in note for note in few.notes)
