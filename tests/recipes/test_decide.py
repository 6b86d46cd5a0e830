"""`sapwood decide` from end to end on a tiny model: what it leaves, that it goes on where it stopped, and the cases that need no pilot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import sapwood
from sapwood.cli.main import main
from sapwood.errors import ConfigError
from sapwood.recipes import pilot
from sapwood.recipes.decide import DecideConfig, decide
from sapwood.recipes.pilot import FEWEST_STEPS, PilotConfig, affordable, fewest_rows, in_order, sizes_for
from sapwood.records import Completion, Ended
from sapwood.run import read_records
from sapwood.train import SftConfig
from tiny.folder import write_model, write_rows

FAST = ["--dtype", "fp32", "--budget", "512", "--max-new-tokens", "3", "--shots", "--held-out", "40", "--batch", "2", "--lr", "1e-2"]
SMALL = ["--steps", str(FEWEST_STEPS), "--sizes", "20", "40", "--trainings", "1"]


def write_coins(file: Path, count: int = 110) -> Path:
    """Rows whose answer nothing in the question tells: no lookup and no training gets far above a half."""
    sides = [bin(number * 2654435761).count("1") % 2 for number in range(count)]
    rows = [{"prompt": f"toss number {number}", "completion": ("heads", "tails")[side]} for number, side in enumerate(sides)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decide")
    write_model(folder / "model")
    arguments = [str(write_coins(folder / "coins.jsonl")), "--model", str(folder / "model"), "--out", str(folder / "run")]
    assert main(["decide", *arguments, *FAST, *SMALL, "--json", str(folder / "result.json")]) == 0
    return folder


def test_a_decision_leaves_a_whole_run_directory(place: Path) -> None:
    run, found = place / "run", json.loads((place / "result.json").read_text())
    assert found["answer"] in ("no", "not yet"), "a coin cannot be learned"
    assert found["text"].startswith(found["answer"].capitalize())
    assert [(point["rows"], point["steps"]) for point in found["pilot"]] == [(20, FEWEST_STEPS), (40, FEWEST_STEPS)]
    ledger = read_records(run / "ledger.jsonl")[-1]
    assert ledger["rows_in"] == 110 == found["rows"] + found["items"]
    low, middle, high = (found["curve"]["all_rows"]["rate"][name] for name in ("low", "middle", "high"))
    assert 0 <= low < middle < high <= 1
    assert found["measured"]["low"] <= found["measured"]["mean"] <= found["measured"]["high"]
    assert not any((run / "pilot").iterdir()), "the pilots' weights are not kept"
    page = (run / "report.html").read_text()
    assert "Should you fine-tune?" in page
    assert 'class="band"' in page
    assert page.count("tuned on 40 rows") >= 2
    assert (run / "environment.json").exists()


def test_named_again_it_asks_nothing_twice_and_adds_what_there_was_no_time_for(place: Path) -> None:
    run = place / "run"
    before = read_records(run / "scores.jsonl")
    record = (run / "decision.json").read_bytes()
    assert main(["decide", str(run)]) == 0
    assert read_records(run / "scores.jsonl") == before
    assert (run / "decision.json").read_bytes() == record
    assert sapwood.decide(run, quiet=True).record == {key: value for key, value in json.loads(record).items() if key != "schema"}
    assert main(["decide", str(run), "--trainings", "2"]) == 0
    after = read_records(run / "scores.jsonl")
    assert after[: len(before)] == before
    assert {entry["arm"] for entry in after[len(before) :]} == {"tuned on 20 rows, again", "tuned on 40 rows, again"}


def test_other_settings_or_another_kind_of_run_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decide", str(place / "run"), "--lr", "1e-4"]) == 1
    assert "other settings" in capsys.readouterr().err
    assert main(["decide", str(place / "run"), "--steps", "30"]) == 1
    assert main(["decide", str(place / "coins.jsonl"), "--max-steps", "3"]) == 2
    assert "max_steps has no meaning here" in capsys.readouterr().err
    assert main(["decide", str(place / "coins.jsonl"), "--eval-every", "3"]) == 2
    assert main(["decide", str(place / "coins.jsonl"), "--held-out", "0"]) == 2
    assert main(["decide", str(place / "coins.jsonl"), "--hosted", "x.jsonl", "--hosted-rate", "0.5"]) == 2
    assert main(["decide", str(tmp_path / "absent.jsonl")]) != 0


def test_prices_and_a_hosted_models_answers_give_costs_and_break_even(place: Path, tmp_path: Path) -> None:
    run = place / "run"
    items = [record["item"] for record in read_records(run / "items.jsonl")]
    answers = [{"item": item, "answer": "heads", "tokens_in": 100, "tokens_out": 2} for item in items[:-1]]
    (tmp_path / "hosted.jsonl").write_text("\n".join(map(json.dumps, answers)))
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump({"hosted_in": 3.0, "hosted_out": 15.0, "machine_hour": 9.0}))
    flags = ["--hosted", str(tmp_path / "hosted.jsonl"), "--prices", str(tmp_path / "prices.yaml"), "--machine-hour", "0.36"]
    assert main(["decide", str(run), *flags, "--queries-a-month", "1000", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    hosted, plain = found["costs"]["hosted model"], found["costs"]["plain prompt"]
    assert found["arms"]["hosted model"]["items"] == len(items) - 1
    assert hosted["dollars_a_thousand"] == pytest.approx(1000 * (100 * 3 + 2 * 15) / 1e6)
    assert hosted["dollars_a_right_answer"] == pytest.approx(hosted["dollars_a_thousand"] / 1000 / hosted["rate"])
    assert plain["dollars_a_thousand"] == pytest.approx(1000 * plain["seconds"] * 0.36 / 3600), "a flag goes before the file"
    pays = found["break_even"]
    assert pays["dollars_once"] == pytest.approx(found["training_seconds"] / 3600 * 0.36)
    assert pays["queries"] is None or pays["queries"] == pytest.approx(1000 * pays["dollars_once"] / pays["saved_a_thousand"])
    assert pays["queries"] is None or pays["months"] == pytest.approx(pays["queries"] / 1000)


def test_what_a_lookup_solves_is_not_tuned_and_trains_nothing(place: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "colours.jsonl", 120), tmp_path / "run"
    assert main(["decide", str(rows), "--model", str(place / "model"), "--out", str(out), *FAST]) == 0
    found = json.loads((out / "decision.json").read_text())
    assert found["answer"] == "no"
    assert "looking up the most similar row" in found["text"]
    assert found["pilot"] == []
    assert "No curve here" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("rows", "flags", "words"),
    [
        (64, [], "only 24 rows to train on"),
        (50, ["--held-out", "10"], "only 10 held-out items"),
        (110, ["--scorer", "none"], "nothing can say whether an answer is right"),
    ],
)
def test_what_cannot_be_decided_says_what_is_missing(place: Path, tmp_path: Path, rows: int, flags: list[str], words: str) -> None:
    file, out = write_coins(tmp_path / "few.jsonl", rows), tmp_path / "run"
    assert main(["decide", str(file), "--model", str(place / "model"), "--out", str(out), *FAST, *flags]) == 0
    found = json.loads((out / "decision.json").read_text())
    assert found["answer"] == "not yet"
    assert words in found["text"]
    assert (out / "report.html").exists()


def test_too_little_time_says_how_much_it_takes_and_goes_on_later(place: Path, tmp_path: Path) -> None:
    arguments = ["decide", str(place / "coins.jsonl"), "--model", str(place / "model"), "--out", str(tmp_path / "run"), *FAST, *SMALL]
    assert main([*arguments, "--minutes", "0.001"]) == 0
    found = json.loads((tmp_path / "run" / "decision.json").read_text())
    assert found["answer"] == "not yet"
    assert found["missing_minutes"] > 0
    assert "--minutes" in found["text"]
    assert main(["decide", str(tmp_path / "run"), "--minutes", "10"]) == 0
    found = json.loads((tmp_path / "run" / "decision.json").read_text())
    assert len(found["pilot"]) == 2


def test_a_stopped_pilot_goes_on_to_the_same_answers(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        def __init__(self, *_: Any) -> None:
            raise KeyboardInterrupt

    arguments = ["decide", str(place / "coins.jsonl"), "--model", str(place / "model"), "--out", str(tmp_path / "run"), *FAST, *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(pilot, "Engine", Stopped)
        assert main(arguments) == 130
    assert any((tmp_path / "run" / "pilot").iterdir()), "a training that is done and not yet asked is kept"
    assert main(arguments) == 0
    mine, whole = (
        {(one["arm"], one["item"]): one["text"] for one in read_records(run / "scores.jsonl") if not one["arm"].endswith("again")}
        for run in (tmp_path / "run", place / "run")
    )
    assert mine == whole


class Oracle:
    """A hosted model of any kind is a Sampler: this one is always right, and costs."""

    def generate(self, prompts: Any, params: Any, **_: Any) -> list[Completion]:
        rows = [prompt.messages[-1].content.split()[-1] for prompt in prompts]
        sides = [bin(int(number) * 2654435761).count("1") % 2 for number in rows]
        return [Completion(prompt, (1,), ("heads", "tails")[side], Ended.STOP) for prompt, side in zip(prompts, sides, strict=True)]


def test_any_sampler_serves_as_the_hosted_model(place: Path, tmp_path: Path) -> None:
    config = DecideConfig(data=(str(place / "coins.jsonl"),), model=str(place / "model"), out=tmp_path / "run", dtype="fp32")
    config = replace(
        config,
        rows=replace(config.rows, held_out=40),
        evaluation=replace(config.evaluation, shots=(), max_new_tokens=3),
        train=SftConfig(batch=2, budget=512),
        pilot=PilotConfig(sizes=(20, 40), steps=FEWEST_STEPS, trainings=1),
    )
    found = decide(config, hosted=Oracle())
    assert found.decision.answer == "no"
    assert "a hosted model is right in 100 %" in found.decision.text
    assert str(found).endswith("report.html")
    assert "hosted model is right" in found._repr_html_()
    with pytest.raises(ConfigError, match="Give one of them"):
        decide(replace(config, hosted=tmp_path / "answers.jsonl"), hosted=Oracle())


def test_ends_of_the_curve_come_first_and_every_size_before_a_second_training() -> None:
    assert in_order([50, 100, 200, 400], 1) == [(50, 0), (400, 0), (200, 0), (100, 0)]
    assert in_order([50, 100], 2) == [(50, 0), (100, 0), (50, 1), (100, 1)]


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(1000, [50, 100, 200, 400]), (400, [50, 100, 200, 400]), (300, [50, 100, 200, 300]), (210, [50, 100, 200]), (60, [50]), (40, [])],
)
def test_sizes_fit_the_rows(rows: int, sizes: list[int]) -> None:
    assert sizes_for((50, 100, 200, 400), rows) == sizes


@pytest.mark.parametrize("sizes", [(50, 100, 200, 400), (50, 60), (400, 50)])
def test_fewer_rows_than_that_make_no_curve(sizes: tuple[int, ...]) -> None:
    assert len(sizes_for(sizes, fewest_rows(sizes))) == 2
    assert len(sizes_for(sizes, fewest_rows(sizes) - 1)) == 1


def test_steps_are_cut_until_the_time_holds_the_points() -> None:
    assert affordable(1000, step=1, other=20, steps=60, points=3) == (60, 240), "time enough changes nothing"
    steps, needed = affordable(120, step=1, other=10, steps=60, points=3)
    assert (steps, needed) == (30, 120)
    steps, needed = affordable(10, step=1, other=10, steps=60, points=3)
    assert steps == FEWEST_STEPS
    assert needed > 10


CLINC = Path(__file__).parents[3] / "shared" / "data" / "clinc150" / "train_val.json"
INTENTS = ("weather", "timer", "translate", "book_flight", "tell_joke")


@pytest.mark.slow
def test_the_default_model_is_not_tuned_where_a_lookup_does_it(tmp_path: Path) -> None:
    """Five intents of CLINC150, asked for by name: similar questions have been asked before, and that is all it takes."""
    if not CLINC.is_file():
        pytest.skip(f"{CLINC} is not here")
    sides = json.loads(CLINC.read_text())
    rows = [(text, intent) for text, intent in sides["train"] + sides["val"] if intent in INTENTS]
    asked = f"Name the intent of the request. Answer with one of: {', '.join(INTENTS)}."
    turns = [[("system", asked), ("user", text), ("assistant", intent)] for text, intent in rows]
    records = [{"messages": [{"role": role, "content": text} for role, text in entry]} for entry in turns]
    (tmp_path / "five.jsonl").write_text("\n".join(map(json.dumps, records)))
    out, flags = tmp_path / "run", ["--held-out", "150", "--max-new-tokens", "8", "--shots", "4", "--dev", "12"]
    assert main(["decide", str(tmp_path / "five.jsonl"), "--out", str(out), *flags]) == 0
    found = json.loads((out / "decision.json").read_text())
    assert found["answer"] == "no"
    assert found["best_without_tuning"] == "nearest training row"
    assert found["arms"]["nearest training row"]["rate"] > 0.95 > found["arms"]["plain prompt"]["rate"]
    assert "Use the lookup" in found["text"]
    assert found["pilot"] == []
