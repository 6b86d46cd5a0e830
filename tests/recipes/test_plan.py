"""A plan counts what training will do, measures a few layers, and says what would make a run fit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sapwood
from sapwood.cli.main import main
from sapwood.errors import ConfigError, TrainingError
from sapwood.forest import plant
from sapwood.model import LoraConfig, add_lora, count_parameters, load_model, trainable_parameters
from sapwood.model.adapters import Parameters
from sapwood.model.load import torch_dtype
from sapwood.recipes.plan_lines import lines_of
from sapwood.recipes.planner import PlanConfig, plan
from sapwood.recipes.prepare import DataConfig
from sapwood.recipes.tune import TuneConfig
from sapwood.records import Row
from sapwood.run import step_records
from sapwood.train import SftConfig, measuring, others, rehearsal
from sapwood.train.estimate import BUSY, Estimate, Measured, Sizes, Work, work_of
from sapwood.train.measuring import estimate
from sapwood.train.memory import available_memory
from sapwood.train.optimizer import OptimConfig, Optimizer
from sapwood.train.rehearsal import rehearse
from tiny.folder import write_model, write_rows
from train.tiny_training import random_examples, tiny_lm

SIZES = Sizes(
    parameters=Parameters(10, 110),
    layers=4,
    program=1000,
    weights=400,
    adapters=20,
    trained=20,
    wide=True,
    gradients=20,
    embedding=0,
    optimizer=80,
    update=20,
    loading=0,
)
MEASURED = Measured(
    pass_seconds=0.5,
    token_seconds=0.01,
    pair_seconds=0.001,
    place_seconds=0.1,
    forward_share=0.25,
    update_seconds=0.01,
    layer_bytes=10.0,
    ends_bytes=5.0,
    fixed_bytes=0,
    kernels_bytes=100,
    head_bytes=50,
    shares=True,
)
KNOWN = Estimate(sizes=SIZES, measured=MEASURED)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 40)
    return tmp_path


def config(**train: Any) -> TuneConfig:
    return TuneConfig(data=("rows.jsonl",), model="model", dtype="fp32", rows=DataConfig(held_out=8), train=SftConfig(**train))


def test_work_counts_what_a_forest_computes() -> None:
    shared = np.arange(2, 22)
    rows = [Row(np.concatenate([shared, [30 + n] * 3]), np.array([40, 41]), np.ones(2, np.float32)) for n in range(3)]
    work = work_of([plant(rows, min_saving=1)])
    assert work.tokens == 20 + 3 * 4
    assert work.row_tokens == 3 * 25
    assert work.pairs == 20 * 21 // 2 + 12 * 20 + 3 * (4 * 5 // 2)
    assert work.places == 6
    assert work.passes == 1


def test_seconds_are_layers_head_and_nothing_else() -> None:
    assert KNOWN.seconds(Work(2, 99, 30, 100, 7)) == pytest.approx(4 * (2 * 0.5 + 30 * 0.01 + 100 * 0.001) + 7 * 0.1)
    assert KNOWN.forward_seconds(Work(2, 99, 30, 100, 7)) == pytest.approx(KNOWN.seconds(Work(2, 0, 30, 100, 7)) / 4)


def test_memory_adds_up_and_the_largest_pass_is_the_largest() -> None:
    parts = KNOWN.parts(30)
    assert parts.activations == 30 * (4 * 10 + 5)
    assert parts.total == sum(vars(parts)[name] for name in vars(parts)) == KNOWN.peak(30)
    assert KNOWN.peak(30) - KNOWN.peak(30, first=True) == 80
    room = KNOWN.peak(30)
    assert KNOWN.largest_pass(room) == 30
    assert KNOWN.largest_pass(1000) == 0


@pytest.mark.parametrize("full", [False, True])
def test_it_counts_what_training_will_have(place: Path, full: bool) -> None:
    train = SftConfig(full=True) if full else SftConfig(lora=LoraConfig(r=4))
    found, _ = estimate(place / "model", train, "fp32")
    model = load_model(place / "model", "fp32")
    if full:
        model.module.requires_grad_(True)
    else:
        model = add_lora(model, train.lora, 0)
    assert found.sizes.parameters == count_parameters(model)
    trained = trainable_parameters(model)
    assert found.sizes.trained == sum(4 * parameter.numel() for parameter in trained.values())
    optimizer = Optimizer(trained, train.optim)
    for parameter in trained.values():
        parameter.grad = parameter.detach().clone()
    optimizer.step(1e-3)
    moments = sum(tensor.numel() * tensor.element_size() for name, tensor in optimizer.state().items() if not name.startswith("parameter."))
    assert found.sizes.optimizer == pytest.approx(moments, rel=0.05)


def test_weights_of_four_bits_are_counted_as_such(place: Path) -> None:
    wide, _ = estimate(place / "model", SftConfig(), "fp32", timed=False)
    found, _ = estimate(place / "model", SftConfig(), "nf4", timed=False)
    model = load_model(place / "model", "fp32")
    linear = sum(p.numel() for name, p in model.module.named_parameters() if name.endswith("_proj.weight"))
    others = (wide.sizes.weights - 4 * linear) // (4 // torch_dtype("nf4").itemsize)
    assert found.sizes.weights == pytest.approx(others + 0.516 * linear, rel=0.02)


def test_a_plan_holds_the_steps_that_training_takes(place: Path) -> None:
    made = plan(PlanConfig(tune=config(batch=4, budget=256, epochs=2)))
    assert main(["sft", "rows.jsonl", "--model", "model", "--held-out", "8", "--batch", "4", "--budget", "256", "--epochs", "2",
                 "--dtype", "fp32", "--out", "run", "--scorer", "exact"]) == 0  # fmt: skip
    steps = [record for record in step_records(place / "run" / "metrics.jsonl") if record["kind"] == "train"]
    assert made.steps == len(steps) == made.steps_looked_at
    assert made.work.row_tokens == sum(record["row_tokens"] for record in steps)
    assert made.work.tokens == sum(record["unique_tokens"] for record in steps)
    assert made.fits
    assert not made.ways
    checkpoints = sum(file.stat().st_size for file in (place / "run" / "checkpoints").rglob("state.safetensors"))
    assert made.disk.checkpoints * 2 / 3 == pytest.approx(checkpoints, rel=0.2)


def test_a_disk_that_is_too_small_is_told_before_the_model_is_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft", "rows.jsonl", "--model", "model", "--held-out", "8", "--dtype", "fp32", "--scorer", "exact", "--max-steps", "1"]
    needed = plan(PlanConfig(tune=config(max_steps=1))).disk
    assert needed.checkpoints < plan(PlanConfig(tune=config(max_steps=9))).disk.checkpoints, "one step leaves one checkpoint"
    monkeypatch.setattr("sapwood.recipes.plan.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 10_000))
    assert main([*words, "--out", "small"]) == 1
    said = capsys.readouterr().err
    assert "9.8 KiB are free" in said or "10 KiB are free" in said
    assert "--keep 1" in said
    assert "Model" not in said


def test_the_same_is_measured_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.Others, "share", lambda self: 0.0)
    first = plan(PlanConfig(tune=config())).estimate.measured
    files = list((place / "cache" / "measured").iterdir())
    assert plan(PlanConfig(tune=config(epochs=3, seed=1))).estimate.measured == first
    plan(PlanConfig(tune=config(lora=LoraConfig(r=2))))
    assert len(list((place / "cache" / "measured").iterdir())) == len(files) + 1


def test_what_was_measured_beside_others_is_told_and_measured_again_when_they_are_gone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"meanwhile": 0.6, "now": 0.6}
    monkeypatch.setattr(measuring.Others, "share", lambda self: shares["meanwhile"])
    monkeypatch.setattr(measuring, "others_now", lambda: shares["now"])
    first = plan(PlanConfig(tune=config()))
    assert "measured while other programs took 60% of the processors" in str(first)
    assert plan(PlanConfig(tune=config())).estimate.measured == first.estimate.measured, "they are still there"
    shares.update(meanwhile=0.02, now=0.02)
    quiet = plan(PlanConfig(tune=config()))
    assert quiet.estimate.measured is not None
    assert quiet.estimate.measured.others == 0.02
    assert "other programs" not in str(quiet)
    shares.update(meanwhile=0.9, now=0.9)
    assert plan(PlanConfig(tune=config())).estimate.measured == quiet.estimate.measured, "what a quiet machine gave is kept"


def test_others_are_what_is_busy_and_not_us(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([(100.0, 60.0, 10.0), (110.0, 62.0, 15.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (10.0, 8.0, 3.0)])
    monkeypatch.setattr(others, "_seconds", lambda: next(seconds))
    assert others.Others().share() == pytest.approx((10 - 2 - 5) / 10)
    assert others.Others().share() == 0, "no time has passed"
    assert others.Others().share() == 0, "clocks that disagree by a tick give no share below 0"


def test_weights_are_not_needed(place: Path) -> None:
    whole = plan(PlanConfig(tune=config()))
    for file in (place / "model").glob("*.safetensors"):
        file.unlink()
    assert plan(PlanConfig(tune=config())).estimate.sizes.weights == whole.estimate.sizes.weights


def test_what_does_not_fit_is_told_with_what_would(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "resident_memory", lambda *_: 1 << 20)
    wide = plan(PlanConfig(tune=config(budget=600, batch=40, full=True)))
    room = (wide.estimate.peak(wide.largest // 2) + 1) / 2**30
    tight = plan(PlanConfig(tune=config(budget=600, batch=40, full=True), memory=room))
    assert not tight.fits
    assert tight.ways[0].options.startswith("--budget ")
    assert int(tight.ways[0].options.split()[1]) >= wide.largest // 2
    lines = "\n".join(lines_of(tight))
    assert "It does not fit" in lines
    for way in tight.ways:
        assert way.peak <= tight.room
        assert (way.options or way.effect) in lines


def test_a_plan_is_a_function_that_shows_itself(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []

    def fetch(name: str, screen: Any, *, weights: bool) -> Path:
        wanted.append(weights)
        return place / name

    monkeypatch.setattr("sapwood.recipes.planner.fetch_model", fetch)
    made = sapwood.plan("rows.jsonl", model="model", dtype="fp32", held_out=8, batch=4, price_per_hour=2.0, quiet=True)
    assert wanted == [False], "no weights are fetched"
    assert (made.train.batch, made.price_per_hour) == (4, 2.0)
    assert str(made).splitlines() == lines_of(made)
    assert made._repr_html_().startswith("<pre>parameters")
    with pytest.raises(ConfigError, match=r"unknown option `btach`.*Did you mean 'batch'"):
        sapwood.plan("rows.jsonl", btach=4)


def test_results_for_machines_are_documented(place: Path) -> None:
    assert main(["plan", "rows.jsonl", "--model", "model", "--dtype", "fp32", "--price-per-hour", "2", "--json", "plan.json"]) == 0
    found = json.loads((place / "plan.json").read_text())
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    for key, value in found.items():
        assert f"`{key}`" in page
        for inner in value if isinstance(value, dict) else ():
            assert f"`{inner}`" in page
    assert found["price"] == pytest.approx(found["seconds"]["total"] / 3600 * 2)
    assert found["memory"]["fits"] is True


def test_a_family_that_cannot_be_measured_is_still_counted() -> None:
    made = dataclasses.replace(KNOWN, measured=None, unmeasured="Nothing was measured: too large.")
    assert made.peak(1000) >= SIZES.program + SIZES.weights
    assert made.seconds(Work(1, 1, 1, 1, 1)) == 0


@pytest.mark.parametrize("wrong", [{"price_per_hour": 0.0}, {"memory": -1.0}, {"memory": float("nan")}])
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PlanConfig(**wrong)  # type: ignore[arg-type]


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 30\n")
    assert available_memory(tmp_path) == 130
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 1000


def lora_and_optimizer() -> tuple[Any, Optimizer]:
    model = add_lora(tiny_lm(), LoraConfig(r=4), 0)
    return model, Optimizer(trainable_parameters(model), OptimConfig())


def test_the_rehearsal_confirms_or_corrects(tmp_path: Path) -> None:
    model, optimizer = lora_and_optimizer()
    found = rehearse(model, optimizer, random_examples(6), [], tmp_path, 200, batch=3, expected=KNOWN)
    assert found.planned is not None
    assert found.planned.seconds > 0
    assert "corrected by the worst-case step" in found.notes[-1]
    near = dataclasses.replace(found.planned, seconds=found.worst_seconds * 1.1, bytes=int(found.step_bytes * 0.9))
    assert "Plan confirmed" in rehearsal._compared(near, found.worst_seconds, found.step_bytes)
    for planned, measured, words in [
        (0.04, 0.12, "Plan confirmed by the worst-case step: memory 1.00 GiB planned, 1.00 measured (+0%); time under 1 s, as planned."),
        (1.0, 1.1, "Plan confirmed by the worst-case step: memory 1.00 GiB planned, 1.00 measured (+0%); time 1.0 s planned, 1.1"),
        (0.04, 1.2, "Plan corrected by"),
    ]:
        assert rehearsal._compared(rehearsal.Planned(planned, rehearsal.GIB), measured, rehearsal.GIB).startswith(words)


def test_the_measured_step_says_how_long_the_run_will_take() -> None:
    planned = rehearsal.Planned(seconds=3.0, bytes=1, update_seconds=1.0, steps=100, step_seconds=2.0)
    (sentence,) = rehearsal._corrected(planned, 5.0)
    assert sentence == "An average step was planned to take 2 s, and takes 2.5 by that measure: about 4 min of training."
    assert rehearsal._corrected(dataclasses.replace(planned, steps=20), 5.0) == [], "it is over at once"
    assert rehearsal._corrected(dataclasses.replace(planned, steps=0), 5.0) == [], "nobody planned a run"


def test_a_run_says_it_before_its_first_step(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rehearsal, "BRIEF_RUN", 0.0)
    made = plan(PlanConfig(tune=config(max_steps=2)))
    assert made.foretold.step_seconds * made.foretold.steps == pytest.approx(made.training_seconds)
    assert main(["sft", "rows.jsonl", "--model", "model", "--dtype", "fp32", "--max-steps", "2", "--scorer", "none"]) == 0
    shown = capsys.readouterr().err
    assert shown.index("Rehearsal passed") < shown.index("An average step was planned to take") < shown.index("Verdict")


def test_where_memory_runs_out_the_budget_is_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = lora_and_optimizer()
    original = rehearsal.accumulate

    def scarce(model: Any, examples: Any, budget: int, **more: Any) -> Any:
        if budget > 110:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return original(model, examples, budget, **more)

    monkeypatch.setattr(rehearsal, "accumulate", scarce)
    found = rehearse(model, optimizer, random_examples(8), [], tmp_path, 400, batch=8)
    assert found.budget == 100
    assert "lowered to 100" in found.notes[0]


def test_a_hopeless_example_is_refused_before_it_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = lora_and_optimizer()
    monkeypatch.setattr(rehearsal, "accumulate", lambda *_, **__: pytest.fail("it was tried"))
    huge = dataclasses.replace(KNOWN, measured=dataclasses.replace(MEASURED, layer_bytes=1e12))
    with pytest.raises(TrainingError, match="would take about"):
        rehearse(model, optimizer, random_examples(3), [], tmp_path, 400, expected=huge)


@pytest.mark.slow
def test_peak_and_time_are_predicted_within_15_percent(tmp_path: Path) -> None:
    """In a process of its own, whose memory holds nothing else; the default model, an adapter, the worst-case step.

    Time is what one thread computes, planned and measured in turn, the least of three each: other programs change that little. On a machine
    that has nothing else to do, the clock on the wall must agree, too.
    """
    found = planned_and_measured(tmp_path, "processor")
    assert found["bytes"][0] == pytest.approx(found["planned_bytes"][0], rel=0.15)
    assert min(found["seconds"]) == pytest.approx(min(found["planned_seconds"]), rel=0.15)
    if os.environ.get("SAPWOOD_QUIET_MACHINE"):
        found = planned_and_measured(tmp_path, "wall")
        assert max(found["others"]) < BUSY, "the machine is not quiet"
        assert min(found["seconds"]) == pytest.approx(min(found["planned_seconds"]), rel=0.15)


def planned_and_measured(folder: Path, clock: str) -> dict[str, list[float]]:
    code = (Path(__file__).parent / "plan_and_rehearsal.py").read_text()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code, str(folder), "3", clock]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return found
