"""lm-eval through Sapwood's scorer and engine is lm-eval through its own backend, on a tiny random model; and the traps are guarded."""

from __future__ import annotations

import json
import random
import socket
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from sapwood.chat import Chat
from sapwood.cli.main import main
from sapwood.errors import ConfigError, DataError
from sapwood.evaluate.benchmark_sets import BENCHMARKS, choose
from sapwood.evaluate.scorers import number
from sapwood.model import load_model
from sapwood.recipes.benchmark_tasks import ask
from sapwood.recipes.benchmarks import BenchmarkConfig, benchmark, summary
from sapwood.recipes.harness import ForestLM
from sapwood.records import Completion, Ended
from sapwood.run import read_records
from tiny.folder import write_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("harness") / "model", context=512)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=module, tokenizer=tokenizer, batch_size=8, device="cpu")  # type: ignore[no-untyped-call]


@pytest.fixture
def ours(folder: Path) -> ForestLM:
    return ForestLM(load_model(folder, "fp32"), Chat.load(folder))


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a benchmark went out to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def requests(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, number, ("t", number, 1)) for number, one in enumerate(arguments)]


def words(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 6))) for _ in range(count))


def test_log_likelihoods_are_those_of_lm_evals_backend(ours: ForestLM, theirs: Any) -> None:
    shared = words(0, 40)
    pairs = [(f"{shared} {words(n // 4, 6)}", f" {words(100 + n, 3)}") for n in range(24)]
    pairs += [("", "the sky"), ("the sky ", " is blue"), (words(1, 400), " one two"), ("a", words(2, 5)), ("a", words(2, 5))]
    expected, found = (
        theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True),
        ours.loglikelihood(requests("loglikelihood", pairs)),
    )
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert set(ours.cut) == {("t", 26)}, "the one that did not fit is told"


def test_greedy_continuations_are_called_greedy(ours: ForestLM, theirs: Any) -> None:
    contexts = [words(n, 8) for n in range(6)]
    answers = ours.generate_until(requests("generate_until", [(c, {"until": [], "max_gen_toks": 3}) for c in contexts]))
    pairs = [(c, a) for c, a in zip(contexts, answers, strict=True) if a and "�" not in a and not c.endswith(" ")]
    assert pairs
    found = ours.loglikelihood(requests("loglikelihood", pairs))
    assert found == [
        (pytest.approx(value, abs=1e-4), greedy)
        for value, greedy in theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    ]


def test_rolling_likelihoods(ours: ForestLM, theirs: Any) -> None:
    texts = [(words(3, 10),), (words(4, 500),), ("a",)]
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) == pytest.approx(expected, abs=1e-4, rel=1e-6)


def test_greedy_generations(ours: ForestLM, theirs: Any) -> None:
    settings = [
        {"until": ["\n\n"], "max_gen_toks": 12},
        {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
        {"until": [], "max_gen_toks": 5},
    ]
    asked = [(words(n, 5 + n), settings[n % 3]) for n in range(9)] + [(words(9, 400), settings[0])]
    assert ours.generate_until(requests("generate_until", asked)) == theirs.generate_until(
        requests("generate_until", asked), disable_tqdm=True
    )


def test_settings_that_nobody_knows_are_refused(ours: ForestLM) -> None:
    with pytest.raises(ConfigError, match="num_beams"):
        ours.generate_until(requests("generate_until", [("a", {"until": [], "num_beams": 3})]))
    with pytest.raises(ConfigError, match="512"):
        ours.generate_until(requests("generate_until", [("a", {"until": [], "max_gen_toks": 600})]))


def test_prompts_of_a_chat_keep_their_ids(ours: ForestLM, theirs: Any) -> None:
    history = [{"role": "user", "content": "the sky is <|im_end|> what?"}]
    text = ours.apply_chat_template(history)
    assert text == theirs.apply_chat_template(history)
    assert ours.tok_encode(text).count(2) == 1, "the one that the template wrote, not the one that was typed"
    assert ours.apply_chat_template([*history, {"role": "assistant", "content": "It"}], add_generation_prompt=False).endswith(
        "assistant\nIt"
    )


def write_choices(file: Path, count: int = 12, repeated: int = 0) -> Path:
    rows = [{"question": f"{words(n, 5)}?", "choices": [words(n * 10 + k, 2) for k in range(4)], "answer": n % 4} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:repeated]]))
    return file


@pytest.mark.usefixtures("_offline")
def test_a_choice_benchmark_is_what_lm_eval_says(ours: ForestLM, theirs: Any, tmp_path: Path) -> None:
    chosen = choose(f"choice={write_choices(tmp_path / 'c.jsonl', repeated=2)}", shots=3, limit=6)
    assert chosen.line.startswith("choice: 6 of 12 questions, 3 shown as examples, 2 repeated rows left out")
    assert not {q.where for q in chosen.asked} & {q.where for q in chosen.examples}
    found, expected = ask(chosen, ours, None, chat=False), ask(chosen, _Kept(theirs), None, chat=False)
    assert [record["item"] for record in found] == [record["item"] for record in expected]
    for mine, other in zip(found, expected, strict=True):
        assert mine["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)
        assert (mine["value"], mine["answer"]) == (other["value"], other["answer"])
        best = max(range(4), key=mine["logprobs"].__getitem__)
        assert mine["value"] == float(best == chosen.asked[found.index(mine)].gold)


class _Kept:
    """lm-eval's backend with the two books that ours keeps."""

    def __new__(cls, backend: Any) -> Any:
        backend.failures, backend.cut = {}, {}
        return backend


def test_the_draw_depends_on_the_seed_and_nothing_else(tmp_path: Path) -> None:
    file = write_choices(tmp_path / "c.jsonl", 30)
    places = [[q.where for q in choose(f"choice={file}", shots=2, limit=8, seed=seed).asked] for seed in (0, 0, 1)]
    assert places[0] == places[1] != places[2]
    assert places[0] != [f"{file}:{n}" for n in range(1, 9)], "not simply the first"


class _Scripted:
    """A sampler that answers 7, and fails on one question."""

    def generate(self, prompts: Any, params: Any, **_: Any) -> list[Completion]:
        assert params.max_new_tokens == BENCHMARKS["gsm8k"].new_tokens
        return [
            Completion(p, (), "", Ended.ERROR, error="out of memory")
            if "three" in p.text
            else Completion(p, tuple(self.seven), "7", Ended.STOP)
            for p in prompts
        ]

    def __init__(self, seven: list[int]) -> None:
        self.seven = seven


@pytest.mark.usefixtures("_offline")
def test_answers_in_words_and_failures(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "g.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": f"so\n#### {a}"}) + "\n" for n, a in (("one", 7), ("two", 8), ("three", 7)))
    )
    chat = Chat.load(folder)
    lm = ForestLM(load_model(folder, "fp32"), chat, engine=_Scripted(chat.tokens.encode(" it is 7\n\nQuestion: 9")))
    records = ask(choose(f"gsm8k={file}", shots=0), lm, number(), chat=False)
    assert [record["value"] for record in records] == [1, 0, None]
    assert records[2]["explanation"] == "no answer to score: out of memory"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("choice", '{"question": "a", "choices": ["x"], "answer": 0}', "at least two texts"),
        ("choice", '{"question": "a", "choices": ["x", "y"], "answer": "z"}', "none of the 2 options"),
        ("choice", "not json", "broken JSON"),
        ("choice", "[1]", "not an object: the row is a list"),
        ("gsm8k", '{"question": "a"}', "`answer` should be a text"),
        ("ifeval", '{"prompt": "a", "instruction_id_list": ["x"], "kwargs": []}', "lists of equal length"),
        ("arc", '{"question": "a", "choices": ["x"]}', "as ARC has it"),
    ],
)
def test_files_that_are_no_benchmark_are_refused_with_their_line(tmp_path: Path, name: str, content: str, why: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content + "\n")
    with pytest.raises(DataError, match=why) as told:
        choose(f"{name}={file}")
    assert f"{file}:1" in str(told.value)


def test_names_that_are_no_benchmark(tmp_path: Path) -> None:
    for name, why in (("mmlu_slice", "Did you mean 'mmlu-slice'"), ("choice", "choice=FILE"), ("choice=c.jsonl*2", "ends in a weight")):
        with pytest.raises(ConfigError, match=why):
            choose(name)
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        choose("gsm8k=none.jsonl")
    with pytest.raises(DataError, match="nothing is left to ask"):
        choose(f"choice={write_choices(tmp_path / 'c.jsonl', 3)}", shots=3)


def test_code_of_a_model_needs_a_word_from_the_user(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    file.write_text(json.dumps({"prompt": "def f():\n", "entry_point": "f", "test": "def check(f): assert f() == 1"}) + "\n")
    with pytest.raises(ConfigError, match="--allow-code"):
        benchmark(BenchmarkConfig(benchmarks=(f"humaneval={file}",), model=str(folder), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_offline")
def test_base_and_another_model_from_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = write_model(tmp_path / "other", seed=1, context=512)
    write_choices(tmp_path / "c.jsonl", 20)
    call = [
        "eval",
        "--benchmarks",
        "choice=c.jsonl",
        "--model",
        str(folder),
        "--beside",
        str(other),
        "--shots",
        "2",
        "--out",
        "run",
        "--json",
        "out.json",
    ]
    assert main(call) == 0, capsys.readouterr().err
    records = read_records(Path("run/benchmarks.jsonl"))
    assert len(records) == 36
    rows = json.loads(Path("out.json").read_text())["rows"]
    assert [row["scored"] for row in rows] == [18, 18]
    assert rows[0]["change"] is None
    assert rows[1]["change"]["low"] < rows[1]["rate"] - rows[0]["rate"] < rows[1]["change"]["high"]
    page = " ".join(Path("run/report.html").read_text().split())
    assert "18 of 20 questions, 2 examples before each, asked as plain text." in page
    differing = {one["item"] for one in records if one["value"] != next(r["value"] for r in records if r["item"] == one["item"])}
    assert page.count('<th scope="row">') == 2 + len(differing)
    assert f"over the same {rows[1]['change']['n']} questions" in page
    monkeypatch.setattr("sapwood.recipes.benchmarks.load_model", None)
    assert main(call) == 0, "what is there is not asked again"
    assert read_records(Path("run/benchmarks.jsonl")) == records
    assert main([*call[:-4], "--seed", "1", "--out", "run"]) == 1, "another draw must not be mixed in"
    write_choices(tmp_path / "c.jsonl", 21)
    assert main(call) == 1, "nor the same name with other questions"
    assert "was begun with other questions" in capsys.readouterr().err


def test_what_has_no_value_counts_for_nobody() -> None:
    values = {"base": [1, 0, None, 1], "tuned": [1, 1, 1, None]}
    records = [
        {"arm": arm, "benchmark": "b", "item": str(n), "value": v, "cut": 0} for arm, each in values.items() for n, v in enumerate(each)
    ]
    base, tuned = summary(records)
    assert (base.scored, base.unscored, base.rate) == (3, 1, pytest.approx(2 / 3))
    assert tuned.change is not None
    assert (tuned.change.n, tuned.change.mean) == (2, 0.5)
    nothing = summary([{**record, "value": None} for record in records])
    assert nothing[0].rate is None
    assert "nothing could be scored" in str(nothing[1])


def test_each_knob_of_a_benchmark_changes_what_is_asked(tmp_path: Path) -> None:
    """Template, its use, and the type of the weights: what the model is shown, or how it is scored, differs by each of them."""
    folder = write_model(tmp_path / "model", context=512)
    file = write_choices(tmp_path / "c.jsonl", 6)

    def asked(name: str, **more: Any) -> list[list[float]]:
        config = {"benchmarks": (f"choice={file}",), "model": str(folder), "shots": 0, "dtype": "fp32", "out": tmp_path / name} | more
        benchmark(BenchmarkConfig(**config))
        return [record["logprobs"] for record in read_records(tmp_path / name / "benchmarks.jsonl")]

    plain = asked("plain")
    assert asked("no", chat="no") == plain, "options are usually scored behind the bare question"
    chat = asked("chat", chat="yes")
    assert chat != plain
    assert asked("template", chat="yes", template="plain") != chat
    half = asked("half", dtype="bf16")
    assert half != plain
    assert [value for one in half for value in one] == pytest.approx([value for one in plain for value in one], rel=0.05)
