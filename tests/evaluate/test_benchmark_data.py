"""Questions of benchmarks by name, file and hub: each set in the very form in which the hub has it, from a server on this machine."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sapwood.errors import AssetError, DataError
from sapwood.evaluate.benchmark_sets import BENCHMARKS, choose
from tiny.hub import OTHER, SHA, hub_of


def parquet(rows: list[dict[str, Any]], labels: dict[str, list[str]] | None = None) -> bytes:
    """A table as the `datasets` library writes it, with names for columns of numbers."""
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    features = {name: {"names": names, "_type": "ClassLabel"} for name, names in (labels or {}).items()}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), out)  # type: ignore[no-untyped-call]
    return out.getvalue()


def readme(*configs: tuple[str, dict[str, str]]) -> bytes:
    """The front of a data set's page: its configurations, their splits and files."""
    lines = ["---", "configs:"]
    for name, splits in configs:
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    return "\n".join([*lines, "---", ""]).encode()


SUMS = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(9)]
FACTS = [{"question": f"Fact {n}?", "subject": "law", "choices": [f"{n}{k}" for k in "wxyz"], "answer": n % 4} for n in range(9)]
SCIENCE = [
    {"id": f"q{n}", "question": f"Why {n}?", "choices": {"text": ["sun", "rain", "wind"], "label": ["1", "2", "3"]}, "answerKey": "2"}
    for n in range(9)
]
STORIES = [{"ind": n, "ctx": f"She opens {n}.", "endings": ["And.", "But.", "Or.", "So."], "label": "3"} for n in range(9)]
RULES = [
    {
        "key": n,
        "prompt": f"Write {n} words, no commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"num_words": None, "relation": None}, {"num_words": n, "relation": "at least"}],
    }
    for n in range(9)
]
PROBLEMS = [{"problem": f"${n}+1$?", "solution": "…", "answer": str(n + 1), "level": 1} for n in range(9)]
SETS: dict[str, dict[str, bytes]] = {
    "openai/gsm8k": {
        "README.md": readme(
            ("main", {"train": "main/train-*", "test": "main/test-*"}),
            ("socratic", {"train": "socratic/train-*", "test": "socratic/test-*"}),
        ),
        **{f"{config}/{split}-00000-of-00001.parquet": parquet(SUMS) for config in ("main", "socratic") for split in ("train", "test")},
    },
    "cais/mmlu": {
        "README.md": readme(("abstract_algebra", {"test": "abstract_algebra/test-*"}), ("all", {"dev": "all/dev-*", "test": "all/test-*"})),
        "abstract_algebra/test-00000-of-00001.parquet": parquet(FACTS[:2], {"answer": list("ABCD")}),
        "all/dev-00000-of-00001.parquet": parquet(FACTS[:1], {"answer": list("ABCD")}),
        "all/test-00000-of-00001.parquet": parquet(FACTS, {"answer": list("ABCD")}),
    },
    "allenai/ai2_arc": {
        "README.md": readme(("ARC-Challenge", {"test": "ARC-Challenge/test-*"}), ("ARC-Easy", {"test": "ARC-Easy/test-*"})),
        **{f"ARC-{kind}/test-00000-of-00001.parquet": parquet(SCIENCE) for kind in ("Challenge", "Easy")},
    },
    "Rowan/hellaswag": {f"data/{split}-00000-of-00001.parquet": parquet(STORIES) for split in ("train", "test", "validation")},
    "google/IFEval": {"ifeval_input_data.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in RULES)},
    "allenai/IFBench_test": {"data/train-00000-of-00001.parquet": parquet(RULES)},
    "HuggingFaceH4/MATH-500": {"README.md": b"# MATH-500", "test.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in PROBLEMS)},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with hub_of(SETS, tmp_path, monkeypatch) as asked:
        monkeypatch.chdir(tmp_path)
        yield asked


def test_every_benchmark_of_the_hub_is_read_in_its_own_form(hub: list[str]) -> None:
    """By name alone: the right split of the right configuration, every row a question, and nothing else of the set fetched."""
    by_hub = [name for name, one in BENCHMARKS.items() if one.data.startswith("hf://")]
    found = {name: choose(name, shots=0) for name in by_hub}
    assert sorted(found) == ["arc", "gsm8k", "hellaswag", "ifbench", "ifeval", "maths", "mmlu"]
    assert {name: len(chosen.asked) for name, chosen in found.items()} == dict.fromkeys(by_hub, 9)
    assert [question.gold for question in found["mmlu"].asked] == [n % 4 for n in range(9)]
    assert found["mmlu"].notes == ("`answer` holds numbers that stand for names: they are written as names (A, B, C, D, …)",)
    assert [question.gold for question in (*found["arc"].asked, *found["hellaswag"].asked)] == [1] * 9 + [3] * 9
    assert found["gsm8k"].asked[3].reference == "It is 6.\n#### 6"
    assert found["maths"].asked[3].reference == "4"
    assert found["gsm8k"].source.startswith(f"hf://openai/gsm8k at {SHA[:12]}: split test of main, 1 file")
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for path in hub if "/resolve/" in path}
    assert not any("train-" in path for path in fetched if not path.startswith("data/train-0")), fetched
    assert not any(name in path for path in fetched for name in ("socratic", "Easy", "abstract", "dev-", "data/test-"))


def test_what_a_table_fills_in_is_no_argument_of_an_instruction(hub: list[str]) -> None:
    expected = {"kinds": RULES[4]["instruction_id_list"], "kwargs": [{}, {"num_words": 4, "relation": "at least"}]}
    assert choose("ifbench").asked[4].reference == choose("ifeval").asked[4].reference == expected


def test_any_data_set_of_the_hub_is_asked_in_a_benchmarks_way(hub: list[str]) -> None:
    assert choose("mmlu=hf://cais/mmlu/abstract_algebra/test", shots=0).of == choose("mmlu=cais/mmlu", shots=0).of == 2
    assert OTHER[:12] in choose("gsm8k=hf://openai/gsm8k@v2/main/test").source
    with pytest.raises(DataError, match=r"no split, configuration, file or folder 'ARC-easy' in it\. Did you mean 'ARC-Easy'"):
        choose("arc=hf://allenai/ai2_arc/ARC-easy")
    with pytest.raises(AssetError, match="there is none of that name"):
        choose("gsm8k=openai/gsm9k")
    with pytest.raises(DataError, match=r"parquet:1: the options should be a list of at least two texts"):
        choose("choice=hf://openai/gsm8k/main/test")


def test_without_the_hub_a_benchmark_says_how_to_go_on(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose("gsm8k", limit=3)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    again = choose("gsm8k", limit=3)
    assert again.asked == first.asked, "the cache holds it"
    assert "from the cache without asking the hub" in again.line
    with pytest.raises(AssetError) as told:
        choose("ifeval")
    assert "benchmark ifeval: hf://google/IFEval: the data set could not be fetched: the hub could not be reached" in str(told.value)
    assert 'ifeval=FILE asks rows that are here; a row is IFEval and IFBench: `{"prompt", "instruction_id_list", "kwargs"}`' in str(
        told.value
    )


def test_files_of_any_kind_and_several_of_them(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in SUMS)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "b.json").write_text(json.dumps(SUMS))
    (tmp_path / "c.parquet").write_bytes(parquet(SUMS))
    (tmp_path / "d.csv").write_text('question;answer\n"What is 1?";"#### 1"\n"What is 2?";"#### 2"\n')
    same = [
        [q.reference for q in choose(f"gsm8k={tmp_path / name}", shots=2, limit=4).asked] for name in ("a.jsonl", "b.json", "c.parquet")
    ]
    assert same[0] == same[1] == same[2]
    table = choose(f"gsm8k={tmp_path / 'd.csv'}", shots=0)
    assert (table.of, table.notes) == (2, ("columns are separated by ';' (found from the first lines)",))
    everything = choose(f"gsm8k={tmp_path}", shots=0)
    assert (everything.of, everything.repeated) == (11, 18)
    assert "4 files of rows" in everything.line
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl: the file is empty"):
        choose(f"gsm8k={tmp_path / 'empty.jsonl'}")
