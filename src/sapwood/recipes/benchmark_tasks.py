"""A benchmark's questions as a task of lm-eval's harness, and what it found as records of our own.

In: `Chosen` questions and a `ForestLM`. Out: one record a question. lm-eval builds the prompts and compares the options; answers in
words are judged by our scorers, the very ones of every other evaluation.

Guarded here, each found in lm-eval 0.4.13: a task given as a dictionary inherits nothing, so ours are whole; the first `limit`
questions are not a sample, so the draw is made before; a `samples` list out of order gets wrong labels, so none is given, and
records are keyed by content; a generating task without settings stops at an empty line, so they are always given; without a split
for examples those come out of the asked questions, so they have their own; results may be numpy numbers or "N/A", so none of its
means is used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from datasets import Dataset, disable_progress_bars
from lm_eval import simple_evaluate
from lm_eval.api import task as task_module
from lm_eval.api.task import ConfigurableTask

from sapwood.evaluate.benchmark_sets import Chosen, Question
from sapwood.evaluate.experiment import bare_prompt
from sapwood.evaluate.scorers import Scorer
from sapwood.recipes.harness import ForestLM
from sapwood.records import Completion, Conversation, Ended, Item, Message, Score


def ask(chosen: Chosen, lm: ForestLM, scorer: Scorer | None, *, chat: bool, seed: int = 0) -> list[dict[str, Any]]:
    """Records {item, value, answer, explanation, text, cut, …} in order of the questions; `value` is None where nothing could be judged.

    `item` hashes question, options and reference: the same question has the same key for every model.
    """
    assert (scorer is None) == (chosen.benchmark.kind == "choice"), "answers in words need a scorer"
    name = chosen.benchmark.name
    with _quiet():
        task = ConfigurableTask(config=_config(chosen))
        task.set_fewshot_seed(seed)
        found: Any = simple_evaluate(
            model=lm,
            tasks=[task],
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            bootstrap_iters=0,
            log_samples=True,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    samples = sorted(found["samples"][name], key=lambda sample: int(sample["doc_id"]))
    assert len(samples) == len(chosen.asked), "one record a question"
    return [_record(sample, question, lm, scorer, name) for sample, question in zip(samples, chosen.asked, strict=True)]


def item_of(question: Question) -> Item:
    """The question as an item of ours: what arms are paired on."""
    reference = question.reference if question.reference is not None else [*question.choices, question.gold]
    return Item(Conversation((Message("user", question.query),)), reference)


def _config(chosen: Chosen) -> dict[str, Any]:
    benchmark = chosen.benchmark
    splits = {"asked": _dataset(chosen.asked)} | ({"examples": _dataset(chosen.examples)} if chosen.examples else {})
    config: dict[str, Any] = {
        "task": benchmark.name,
        "custom_dataset": lambda **_: splits,
        "test_split": "asked",
        "num_fewshot": len(chosen.examples),
        "doc_to_text": lambda doc: doc["query"],
    }
    if chosen.examples:
        config |= {"fewshot_split": "examples", "fewshot_config": {"sampler": "first_n"}}
    if benchmark.kind == "choice":
        return config | {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda doc: doc["choices"],
            "doc_to_target": lambda doc: doc["gold"],
            "target_delimiter": "",
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")],
        }
    return config | {
        "output_type": "generate_until",
        "doc_to_target": lambda doc: doc["target"],
        "target_delimiter": "",
        "generation_kwargs": {"until": list(benchmark.until), "max_gen_toks": benchmark.new_tokens, "do_sample": False, "temperature": 0.0},
        "process_results": lambda doc, results: {"answered": 1.0},
        "metric_list": [{"metric": "answered", "aggregation": "mean", "higher_is_better": True}],
    }


def _dataset(questions: tuple[Question, ...]) -> Any:
    return Dataset.from_list(
        [{"query": each.query, "choices": list(each.choices), "gold": each.gold, "target": each.target} for each in questions]
    )


def _record(sample: Mapping[str, Any], question: Question, lm: ForestLM, scorer: Scorer | None, task: str) -> dict[str, Any]:
    document = (task, int(sample["doc_id"]))
    assert sample["doc"]["query"] == question.query, "lm-eval's record is of another question"
    common = {"item": item_of(question).id, "source": question.where, "cut": lm.cut.get(document, 0)}
    if scorer is None:
        logprobs = [float(response[0][0]) for response in sample["resps"]]
        picked = max(range(len(logprobs)), key=logprobs.__getitem__)
        right = f"expected {question.choices[question.gold].strip()!r}, took {question.choices[picked].strip()!r}"
        return common | {
            "value": float(sample["acc"]),
            "normalised": float(sample["acc_norm"]),
            "answer": question.choices[picked].strip(),
            "explanation": "" if sample["acc"] else right,
            "logprobs": logprobs,
        }
    text = str(sample["resps"][0][0])
    score = _judged(question, text, lm.failures.get(document), scorer)
    return common | {"value": score.value, "answer": score.answer, "explanation": score.explanation, "text": text}


def _judged(question: Question, text: str, failure: str | None, scorer: Scorer) -> Score:
    item = item_of(question)
    ended = Ended.STOP if failure is None else Ended.ERROR
    return scorer(item, Completion(bare_prompt(item.conversation), (), text, ended, error=failure))


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's own lines and bars, and every thought of a network, kept off."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [logger.level for logger in loggers]
    bar = task_module.tqdm
    task_module.tqdm = lambda iterable, **_: iterable
    os.environ.update(dict.fromkeys(names, "1"))
    disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        task_module.tqdm = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
