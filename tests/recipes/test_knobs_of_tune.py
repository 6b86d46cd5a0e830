"""No option around training is accepted and ignored: each one, turned, changes something that can be seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from review.corrected import write_corrections
from sapwood.config import from_dict, known_keys, to_dict
from sapwood.errors import ConfigError, SapwoodError
from sapwood.evaluate import items_from
from sapwood.model import load_model
from sapwood.recipes import Screen, TuneConfig
from sapwood.recipes.arms import Arms, scorer_for
from sapwood.recipes.identity import hash_of_weights
from sapwood.recipes.prepare import conversations_among, prepare, scan_files, set_apart
from sapwood.recipes.samples import evenly
from sapwood.recipes.track import tracking
from sapwood.recipes.tune import load_chat, start_run, with_corrections
from sapwood.records import Completion, Conversation, Ended, Prompt, SamplingParams
from sapwood.run import open_run
from tiny.folder import write_model

CALLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}}]


@dataclasses.dataclass(frozen=True)
class Place:
    """Folders and files that the options name."""

    folder: Path

    @property
    def base(self) -> dict[str, Any]:
        return {"data": [str(self.folder / "rows.jsonl")], "model": str(self.folder / "model"), "rows": {"held_out": 8}}


TABLE: dict[str, tuple[Any, str]] = {
    "data": (["{folder}/fewer.jsonl"], "trained rows"),
    "from_review": (["{folder}/review.db"], "trained rows"),
    "model": ("{folder}/other", "base weights"),
    "template": ("plain", "prompts"),
    "tools_in_system": (True, "refused rows"),
    "out": ("{folder}/elsewhere", "run directory"),
    "dtype": ("fp64", "type of the weights"),
    "rows.format": ("prompt-completion", "prompts"),
    "rows.columns": (["messages=other"], "prompts"),
    "rows.prompt": ("thing", "prompts"),
    "rows.completion": ("thing", "answers"),
    "rows.system": ("Speak {lang}.", "prompts"),
    "rows.only": (["lang=en"], "trained rows"),
    "rows.held_out": (5, "held-out rows"),
    "rows.cluster": ("thing", "held-out rows"),
    "rows.reference": ("thing", "references"),
    "rows.choosing": (0.5, "held-out rows"),
    "rows.allow_urls": (True, "refused rows"),
    "rows.max_refused": (0.0, "whether the run stops"),
    "rows.split_seed": (1, "held-out rows"),
    "rows.cache": (False, "work at the next start"),
    "evaluation.scorer": ("set-f1", "scores"),
    "evaluation.allow_code": (True, "whether a model's code may run"),
    "evaluation.max_new_tokens": (7, "length of answers"),
    "evaluation.shots": ([], "few-shot arms"),
    "evaluation.dev": (5, "few-shot arms"),
    "watch.samples": (5, "questions asked while it trains"),
    "watch.track": (["tensorboard"], "services that are told"),
}
"""Option → a value other than its default, and what it changes."""
BESIDE: dict[str, dict[str, Any]] = {
    "tools_in_system": {"data": ["{folder}/tools.jsonl"], "rows": {"max_refused": 1.0}},
    "rows.prompt": {"rows": {"prompt": "question", "completion": "answer"}},
    "rows.completion": {"rows": {"prompt": "question", "completion": "answer"}},
    "rows.allow_urls": {"data": ["{folder}/pictures.jsonl"], "rows": {"max_refused": 1.0}},
    "rows.max_refused": {"data": ["{folder}/broken.jsonl"], "rows": {"max_refused": 0.5}},
}
"""What else is set in both runs that are compared."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("knobs")
    write_model(folder / "model")
    write_model(folder / "other", seed=1)

    def row(number: int, **more: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": f"what is {number}"}, {"role": "assistant", "content": "odd" if number % 2 else "even"}]
        other = [{"role": "user", "content": f"and {number}"}, {"role": "assistant", "content": "good"}]
        columns = {"prompt": f"p {number}", "completion": "c", "question": f"q {number}", "answer": "a", "thing": f"t{number % 5}"}
        return {"messages": turns, "other": other, **columns, "lang": "de" if number % 4 else "en", **more}

    def write(name: str, rows: Sequence[Any]) -> None:
        (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))

    write("rows.jsonl", [row(number) for number in range(40)])
    write("fewer.jsonl", [row(number) for number in range(20)])
    write("broken.jsonl", [*(row(number) for number in range(40)), {"messages": "what?"}])
    tools = [row(number, tools=CALLS) for number in range(20)]
    write("tools.jsonl", [*tools, *(row(number) for number in range(20, 40))])
    parts = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/none.png"}}, {"type": "text", "text": "what is it"}]
    picture = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a cat"}]}
    write("pictures.jsonl", [*(row(number) for number in range(40)), picture])
    write_corrections(folder / "review.db", 4)
    return Place(folder)


class Listening:
    """A sampler that answers everything alike and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        self.asked.append((len(prompts), params.max_new_tokens))
        return [Completion(prompt, (1,), "odd, even", Ended.STOP) for prompt in prompts]


def seen(config: TuneConfig, folder: Path) -> dict[str, Any]:
    """All that an option around training may change."""
    config = with_corrections(config)
    found: dict[str, Any] = {
        "base weights": hash_of_weights(Path(config.model)),
        "type of the weights": load_model(Path(config.model), config.dtype).dtype,
    }
    try:
        found["whether a model's code may run"] = bool(replace(config.evaluation, scorer="code-tests"))
    except ConfigError as error:
        found["whether a model's code may run"] = str(error)
    run, _ = start_run(config if config.out else replace(config, out=folder / "run"), Screen(quiet=True))
    found["run directory"] = run.path
    run.close()
    chat = load_chat(Path(config.model), config.template, tools_in_system=config.tools_in_system)
    try:
        rows = scan_files(config.data, config.rows, lambda done, total, what: None, weighted=True)
        prepared = prepare(rows, chat, config.rows)
        prepared = set_apart(prepared, config.rows) if config.selects else prepared
    except SapwoodError as error:
        return found | {"whether the run stops": str(error)}
    again = prepare(scan_files(config.data, config.rows, lambda done, total, what: None, weighted=True), chat, config.rows)
    items = items_from(conversations_among(prepared.held_out), cluster=config.rows.cluster, reference=config.rows.reference)
    guess = scorer_for(config.evaluation, items)
    assert guess.scorer is not None
    ears = Listening()
    run = open_run(folder / "scores")
    scores = Arms(
        items, items_from(conversations_among(prepared.train)), chat, guess.scorer, config.evaluation, run, Screen(quiet=True)
    ).base(ears)
    run.close()
    said: list[str] = []
    run = open_run(folder / "tracked")
    with tracking(run, config.watch.track, {}, said.append) as tell:
        tell([{"kind": "train", "step": 1, "loss": 1.0}])
    run.close()
    services = {path.parent.name for path in run.path.glob("*/*")} | {sentence.split()[0] for sentence in said}
    trained = [row for row in prepared.train if isinstance(row, Conversation)]
    return found | {
        "whether the run stops": None,
        "trained rows": len(prepared.train),
        "held-out rows": [row.where for row in prepared.held_out],
        "prompts": [example.rows[0].prompt_T.tolist() for example in prepared.examples],
        "answers": [row.messages[-1].content for row in trained],
        "refused rows": [str(refusal) for refusal in prepared.ledger.refused],
        "references": [item.reference for item in items],
        "work at the next start": again.cached,
        "scores": [score.value for score in scores],
        "length of answers": [length for _, length in ears.asked],
        "questions asked while it trains": [item.id for item in evenly(items, config.watch.samples)],
        "services that are told": services,
        "few-shot arms": [count for count, _ in ears.asked],
    }


def filled(value: Any, folder: Path) -> Any:
    """`{folder}` in texts is the place's folder; `{lang}` is a column."""
    if isinstance(value, Mapping):
        return {key: filled(entry, folder) for key, entry in value.items()}
    if isinstance(value, list):
        return [filled(entry, folder) for entry in value]
    return value.replace("{folder}", str(folder)) if isinstance(value, str) else value


def config_with(place: Place, *turned: Mapping[str, Any]) -> TuneConfig:
    merged: dict[str, Any] = dict(place.base)
    for entry in turned:
        for key, value in filled(entry, place.folder).items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return from_dict(TuneConfig, merged, "the test")


@pytest.fixture(scope="module")
def unturned(place: Place) -> dict[str, Any]:
    return seen(config_with(place), place.folder / "unturned")


def test_every_option_has_a_line_in_the_table() -> None:
    assert set(TABLE) == {key for key in known_keys(TuneConfig) if not key.startswith("train.")}


@pytest.mark.parametrize("knob", TABLE)
def test_turning_it_changes_what_it_should(place: Place, tmp_path: Path, knob: str, unturned: dict[str, Any]) -> None:
    value, what = TABLE[knob]
    *outer, name = knob.split(".")
    beside = BESIDE.get(knob, {})
    before = seen(config_with(place, beside), tmp_path / "beside") if beside else unturned
    config = config_with(place, beside, {outer[0]: {name: value}} if outer else {name: value})
    assert to_dict(config) != to_dict(config_with(place, beside)), "the table's value is the base's"
    assert seen(config, tmp_path / "turned")[what] != before[what]
