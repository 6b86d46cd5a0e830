"""`sapwood grpo` and `sapwood dpo` on a tiny model folder: files in, verdict out, and each bad input told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sapwood
from sapwood.cli.main import main
from sapwood.config import with_knobs
from sapwood.errors import CheckpointError, ConfigError, DataError, TrainingError
from sapwood.evaluate.grpo_signs import signs
from sapwood.evaluate.rewards import Reward
from sapwood.recipes.distill import DistillConfig, distill
from sapwood.recipes.prefer import PreferConfig, PreferResult, prefer
from sapwood.recipes.reinforce import ReinforceConfig, ReinforceResult, TaskConfig, reinforce
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import config_of
from sapwood.run import read_records
from tiny.folder import write_model

FAST: dict[str, Any] = {"lr": 1e-3, "r": 2, "budget": 512, "cache": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def questions(folder: Path, count: int = 8) -> Path:
    return write(folder / "questions.jsonl", [{"prompt": f"{number} of {count}?", "right": str(number)} for number in range(count)])


def pairs(folder: Path, count: int = 12) -> Path:
    rows = [{"prompt": f"{n}: the colour of sky", "chosen": "blue", "rejected": "five four three"} for n in range(count)]
    return write(folder / "pairs.jsonl", rows)


class Heard(Screen):
    """A screen whose sentences are kept."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str, style: str = "") -> None:
        self.said.append(text)

    def lines(self, lines: list[str]) -> None:
        self.said += lines


def learn(model: Path, folder: Path, rewards: Sequence[Reward], screen: Screen | None = None, **knobs: Any) -> ReinforceResult:
    base = ReinforceConfig(data=knobs.pop("data", (str(questions(folder)),)), out=knobs.pop("out", folder / "run"))
    settings = {
        "model": str(model),
        "steps": 2,
        "prompts": 2,
        "group": 3,
        "max_new_tokens": 5,
        "held_out": 2,
        "preflight": 2,
        **FAST,
        **knobs,
    }
    return reinforce(with_knobs(base, settings), screen=screen, rewards=rewards)


def longer(completions: list[Any], **columns: Any) -> list[float]:
    return [len(one[0]["content"]) / 20 for one in completions]


def told(rewards: Sequence[Reward], model: Path, folder: Path, **knobs: Any) -> str:
    with pytest.raises((TrainingError, ConfigError, DataError)) as error:
        learn(model, folder, rewards, **knobs)
    return str(error.value)


def test_a_run_from_prompts_to_verdict(model: Path, tmp_path: Path) -> None:
    screen = Heard()
    result = learn(model, tmp_path, [Reward("longer", function=longer)], screen, reference="right")
    said = "\n".join(screen.said)
    assert "2 prompts × 3 answers" in said
    assert "The loss is near 0 by construction" in said
    assert "step 2/2  reward" in said
    assert "The other 1 steps will take about" in said
    assert "best  " in said
    assert "sampling" in said
    assert result.difference is not None
    assert result.difference.n == 2
    ledger = [record["status"] for record in read_records(result.path / "ledger.jsonl") if record["kind"] == "row"]
    assert len(ledger) == 8
    assert ledger.count("held_out") == 2
    assert {record["which"] for record in read_records(result.path / "rollouts.jsonl")} == {"best", "worst"}
    assert (result.adapter / "adapter_model.safetensors").is_file()
    assert (result.adapter / "tokenizer.json").is_file()
    again = learn(model, tmp_path, [Reward("longer", function=longer)], reference="right")
    assert again.line == result.line  # finished: nothing is done again
    with pytest.raises(CheckpointError, match="other settings"):
        learn(model, tmp_path, [Reward("longer", function=longer)], reference="right", temperature=0.5)


def test_columns_reach_the_reward(model: Path, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def reward(completions: list[Any], right: list[str], prompts: Any, completion_ids: Any, **columns: Any) -> list[float]:
        seen.update(right=right, prompts=prompts, ids=completion_ids, completions=completions)
        return [float(len(ids)) + number / 100 for number, ids in enumerate(completion_ids)]

    learn(model, tmp_path, [Reward("own", function=reward)], steps=1, preflight=0, held_out=0)
    assert len(seen["right"]) == len(seen["ids"]) == 6
    assert seen["prompts"][0][0]["role"] == "user"
    assert seen["completions"][0][0]["role"] == "assistant"


def raises(completions: list[Any], **columns: Any) -> list[float]:
    raise ZeroDivisionError("division by zero")


BAD: dict[str, tuple[Any, str]] = {
    "raises": (raises, "judged none of 6 answers: it raised ZeroDivisionError: division by zero"),
    "nan": (lambda completions, **_: [float("nan")] * len(completions), "gave nan, which is no finite number"),
    "strings": (lambda completions, **_: ["good"] * len(completions), "gave 'good', which is no finite number"),
    "too few": (lambda completions, **_: [1.0], "gave 1 values for 6 answers"),
    "none": (lambda completions, **_: [None] * len(completions), "judged nothing"),
    "constant": (lambda completions, **_: [0.3] * len(completions), "All 2 groups of 3 answers were rewarded alike (such as 0.3)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reward_is_told_before_anything_is_trained(model: Path, tmp_path: Path, name: str) -> None:
    function, words = BAD[name]
    assert words in told([Reward(name, function=function)], model, tmp_path)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_reward_that_fails_later_is_counted_and_named(model: Path, tmp_path: Path) -> None:
    calls = []

    def flaky(completions: list[Any], **columns: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionError("the judge has gone")
        return longer(completions)

    result = learn(model, tmp_path, [Reward("judge", function=flaky)], held_out=0, resample=0)
    steps = [record for record in read_records(result.path / "metrics.jsonl") if record["kind"] == "train"]
    assert [step["unjudged"] for step in steps] == [1.0, 0.0]
    notes = [record["note"] for record in read_records(result.path / "rollouts.jsonl") if record["which"] == "failed"]
    assert notes == ["judge: it raised ConnectionError: the judge has gone"]


def test_an_asynchronous_reward_is_awaited(model: Path, tmp_path: Path) -> None:
    async def reward(completions: list[Any], **columns: Any) -> list[float]:
        return longer(completions)

    learn(model, tmp_path, [Reward("slow", function=reward)], steps=1, held_out=0)


def test_prompts_longer_than_the_context_are_refused_by_their_line(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}"} for number in range(60)] + [{"prompt": "one " * 700}]
    file = write(tmp_path / "long.jsonl", rows)
    result = learn(model, tmp_path, [Reward("longer", function=longer)], data=(str(file),), steps=1, preflight=0)
    refused = [record for record in read_records(result.path / "ledger.jsonl") if record.get("status") == "refused"]
    assert [record["line"] for record in refused] == [61]
    assert "the model's context holds 512" in refused[0]["reason"]


def test_row_options_that_nothing_reads_are_refused(model: Path, tmp_path: Path) -> None:
    rows = (str(pairs(tmp_path)),)
    with pytest.raises(ConfigError, match=r"rows\.reference is 'right', but dpo does not read it"):
        prefer(with_knobs(PreferConfig(data=rows), {"reference": "right"}))
    with pytest.raises(ConfigError, match=r"rows\.choosing is 0\.5, but grpo does not"):
        reinforce(with_knobs(ReinforceConfig(data=rows, rewards=("number",)), {"choosing": 0.5}))
    with pytest.raises(ConfigError, match=r"rows\.held_out is 20\.0, but the task chain_sum gives the prompts"):
        reinforce(with_knobs(ReinforceConfig(gym=TaskConfig(task="chain_sum")), {"held_out": 20}))
    with pytest.raises(ConfigError, match=r"rows\.split_seed is 3, but distill, which asks every prompt, does not"):
        distill(with_knobs(DistillConfig(data=rows, rewards=("number",)), {"split_seed": 3}))


def test_nothing_named_or_both(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No data is named"):
        reinforce(ReinforceConfig())
    with pytest.raises(ConfigError, match="No reward is named"):
        reinforce(ReinforceConfig(data=("a.jsonl",)))
    with pytest.raises(ConfigError, match="Give one of them"):
        reinforce(ReinforceConfig(data=("a.jsonl",), gym=TaskConfig(task="chain_sum")))
    with pytest.raises(ConfigError, match="no scorer 'nmber'"):
        reinforce(ReinforceConfig(data=("a.jsonl",), rewards=("nmber",)))
    with pytest.raises(ConfigError, match="is no weight"):
        reinforce(ReinforceConfig(data=("a.jsonl",), rewards=("number*x",)))
    with pytest.raises(ConfigError, match="has no task 'chain_sun'"):
        reinforce(ReinforceConfig(gym=TaskConfig(task="chain_sun")))
    with pytest.raises(ConfigError, match=r"gym\.settings is given, but no task"):
        reinforce(ReinforceConfig(data=("a.jsonl",), rewards=("number",), gym=TaskConfig(settings=("min_terms=2",))))
    with pytest.raises(ConfigError, match=r"gym\.instruction is given, but no task"):
        reinforce(ReinforceConfig(data=("a.jsonl",), rewards=("number",), gym=TaskConfig(instruction="Be brief.")))
    with pytest.raises(ConfigError, match=r"whose value cannot be read"):
        reinforce(ReinforceConfig(gym=TaskConfig(task="chain_sum", settings=("min_terms=[2",))))


def steps(count: int, **last: float) -> list[dict[str, Any]]:
    first = {"solved": 0.3, "length": 40.0, "entropy": 1.0, "cut": 0.0, "dead": 0.1, "kl": 0.0, "unjudged": 0.0, "repeated": 0.02}
    rewards = {"format": last.pop("format", 0.3)}
    return [{**first, "rewards": {"format": 0.3}} for _ in range(count)] + [{**first, **last, "rewards": rewards} for _ in range(count)]


def test_the_remedy_for_cut_answers_is_no_more_tokens_where_the_context_is_full() -> None:
    (limit,), (full,) = signs(steps(6, cut=0.4, outgrown=0.1)), signs(steps(6, cut=0.4, outgrown=0.3))
    assert "Raise --max-new-tokens, or leave cut answers out of the loss with --mask-overlong." in str(limit)
    assert "cut where the context was full" in str(full)
    assert "longer context, or leave cut answers out of the loss with --mask-overlong." in str(full)
    assert "--max-new-tokens" not in str(full)


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("length", {"length": 90.0}),
        ("repetition", {"repeated": 0.5}),
        ("format", {"format": 0.97}),
        ("collapse", {"entropy": 0.05}),
        ("divergence", {"kl": 2.0}),
        ("cut", {"cut": 0.4}),
        ("dead groups", {"dead": 0.9}),
        ("unjudged", {"unjudged": 0.5}),
    ],
)
def test_alarms(kind: str, last: dict[str, float]) -> None:
    assert [sign.kind for sign in signs(steps(6, **last))] == [kind]
    assert signs(steps(6)) == []
    assert signs(steps(2, **last)) == []


def test_growth_that_solves_more_is_no_alarm() -> None:
    assert signs(steps(6, length=90.0, solved=0.6, format=0.97)) == []


# ---- preferences


def tune(model: Path, folder: Path, screen: Screen | None = None, **knobs: Any) -> PreferResult:
    base = PreferConfig(data=knobs.pop("data", (str(pairs(folder)),)), out=folder / "run", votes=knobs.pop("votes", None))
    return prefer(
        with_knobs(base, {"model": str(model), "epochs": 2, "batch": 4, "held_out": 4, **FAST, "lr": 2e-2, **knobs}), screen=screen
    )


def test_pairs_to_verdict(model: Path, tmp_path: Path) -> None:
    screen = Heard()
    result = tune(model, tmp_path, screen)
    assert result.training.after is not None
    assert result.training.after.right == 4
    assert "of 4 held-out pairs preferred as people did" in result.line
    assert any("saved by sharing" in line for line in screen.said)
    assert result.training.unique_tokens < 0.8 * result.training.row_tokens
    assert result.summary()["after"]["accuracy"] == 1.0


def test_votes_to_verdict(model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}: the colour of sky", "completion": "blue" if n % 2 else "five four three", "label": bool(n % 2)} for n in range(12)
    ]
    result = tune(model, tmp_path, data=(str(write(tmp_path / "votes.jsonl", rows)),), votes="label", epochs=6)
    assert "votes shared" in result.line
    same = write(tmp_path / "same.jsonl", [{**row, "label": True} for row in rows])
    with pytest.raises(ConfigError, match="say the same"):
        tune(model, tmp_path / "other", data=(str(same),), votes="label")
    with pytest.raises(ConfigError, match="loss is ipo, but single votes"):
        tune(model, tmp_path / "fourth", votes="label", loss="ipo")


def test_a_vote_held_out_alone_is_told_of(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}: sky", "completion": "blue" if n % 2 else "five", "label": bool(n % 2)} for n in range(8)]
    screen = Heard()
    tune(model, tmp_path, screen, data=(str(write(tmp_path / "v.jsonl", rows)),), votes="label", epochs=1, held_out=1)
    assert any("One vote alone is held out" in line for line in screen.said)


def test_bad_pairs_are_refused_by_their_line(model: Path, tmp_path: Path) -> None:
    good = [json.loads(line) for line in pairs(tmp_path).read_text().splitlines()]
    odd = {"prompt": "x", "chosen": "same", "rejected": "same"}
    result = tune(model, tmp_path, data=(str(write(tmp_path / "odd.jsonl", [*good, odd])),), max_refused=0.2)
    refused = [record for record in read_records(result.path / "ledger.jsonl") if record.get("status") == "refused"]
    assert [(record["line"], "are the same" in record["reason"]) for record in refused] == [(13, True)]


def test_conversational_pairs_are_read(model: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{n}: the colour of sky"}],
            "chosen": [{"role": "assistant", "content": "blue"}],
            "rejected": [{"role": "assistant", "content": "green"}],
        }
        for n in range(12)
    ]
    result = tune(model, tmp_path, data=(str(write(tmp_path / "chat.jsonl", rows)),), epochs=1)
    assert result.training.steps == 2


def test_going_on_from_a_run(model: Path, tmp_path: Path) -> None:
    first = tune(model, tmp_path / "a", data=(str(pairs(tmp_path)),), epochs=1)
    screen = Heard()
    second = tune(model, tmp_path / "b", screen, data=(str(pairs(tmp_path)),), epochs=1, start=first.path, r=16)
    assert second.training.before is not None
    assert second.training.before.margin == pytest.approx(0, abs=0.03)  # the reference is where it began
    assert any("Going on from" in line for line in screen.said)


def test_the_verbs(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(model), "--cache", "False", "--lr", "1e-3", "--budget", "512"]
    assert main(["dpo", str(pairs(tmp_path)), "--out", str(tmp_path / "d"), "--max-steps", "1", *common, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    script = tmp_path / "mine.py"
    script.write_text("def longer(completions, **columns):\n    return [len(one[0]['content']) / 20 for one in completions]\n")
    words = ["grpo", str(questions(tmp_path)), "--out", str(tmp_path / "g"), "--rewards", f"{script}:longer", "tokens:1-9*0.5"]
    words += ["--steps", "1", "--prompts", "2", "--group", "3", "--max-new-tokens", "5", "--preflight", "2", *common]
    assert main([*words, "--json", str(tmp_path / "g.json")]) == 0
    assert json.loads((tmp_path / "g.json").read_text())["prompts_asked"] >= 2
    assert main(["grpo", str(tmp_path / "g"), "--json"]) == 0
    new = write(tmp_path / "new.jsonl", [{"prompt": f"new {number}", "completion": "blue"} for number in range(3)])
    for run in ("d", "g"):
        assert config_of(tmp_path / run).model == str(model)
        ask = ["eval", str(new), "--model", str(model), "--adapter", str(tmp_path / run), "--scorer", "exact", "--held-out", "0"]
        assert main([*ask, "--max-new-tokens", "4", "--out", str(tmp_path / f"e{run}"), "--cache", "False"]) == 0
    assert main(["grpo", "--help"]) == 0
    assert main(["dpo", "--bta", "1"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_from_python(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    knobs = {"model": str(model), "quiet": True, **FAST}
    settings = {"steps": 1, "prompts": 2, "group": 3, "max_new_tokens": 5, "preflight": 0, "held_out": 0, **knobs}
    result = sapwood.grpo(str(questions(tmp_path)), rewards=[longer, "tokens:1-9*0.5"], **settings)
    step = next(record for record in read_records(result.path / "metrics.jsonl") if record["kind"] == "train")
    assert list(step["rewards"]) == ["tokens:1-9", "longer"]
    assert sapwood.dpo(str(pairs(tmp_path)), max_steps=1, held_out=0, **knobs).training.steps == 1
