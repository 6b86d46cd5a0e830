"""The report of a run that learned from rewards or preferences: files in; verdict, curves, alarms and answers as the page shows them out.

The page has the parts of every other report (verdict, ledger, settings) and those that only such a run has. A run that was stopped has the
same page: its verdict is that of the last evaluation, and it says how far it came. Left out on purpose: statistics beyond those of
`reward_verdict` and `preference_verdict`, and a script. Long texts are folded, so that the page reads without one.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from sapwood.evaluate.charts import signed
from sapwood.evaluate.grpo_signs import Seen, seen_in
from sapwood.evaluate.learning_charts import ChartView, never_moved, preference_charts, reward_charts
from sapwood.evaluate.learning_figures import ABOUT_THE_LOSS, GRADIENT, REWARD_FIGURES, seconds_by_phase
from sapwood.evaluate.preference_signs import preference_signs
from sapwood.evaluate.preference_verdict import evaluations, preference_verdict
from sapwood.evaluate.report_answers import answers_view
from sapwood.evaluate.report_files import Record, RunFiles, flat, mapping, number, text_of
from sapwood.evaluate.report_sections import ledger_view
from sapwood.evaluate.report_verdict import WORDS, VerdictView, arms_view, verdict_view
from sapwood.evaluate.reward_verdict import reward_verdict, values_by_step

QUESTIONS = {"grpo": "Does it solve more than before?", "dpo": "Does it prefer what people preferred?"}
WATCHED = {
    "grpo": "Watched for: length, repetition or format that grow while no more is solved, collapse of the entropy, divergence, cut "
    "answers, dead groups, rewards that judge nothing.",
    "dpo": "Watched for: overfitting, pairs known by heart, both answers becoming less likely, divergence, the opposite being learned, "
    "nothing being learned.",
}
CAVEATS = {
    "grpo": "The interval is over held-out prompts, answered greedily, of one training run: another seed may give another result.",
    "dpo": "The interval is over held-out pairs of one training run. Before step 1 the model is its own reference, so every pair is a tie.",
}


@dataclass(frozen=True)
class Phase:
    """Where the time went."""

    look: str
    words: str
    seconds: str
    share: float
    """In per cent."""


@dataclass(frozen=True)
class LearningView:
    """All that only such a page shows."""

    kind: str
    question: str
    steps: int
    planned: int
    charts: list[ChartView]
    still: str
    """Names of figures that were 0 in every step, and have no chart."""
    loss: str
    """Why a loss near 0 is no fault, with the figures of this run; empty for preferences."""
    phases: list[Phase]
    alarms: list[tuple[str, Seen]]
    """(when, finding)"""
    watched: str
    preflight: list[tuple[str, str]]
    next: list[tuple[str, str]]
    """(command, what it does)"""


def shown_of(files: RunFiles) -> dict[str, Any]:
    """What the template `learning.html` is given of a run of `grpo` or `dpo`."""
    kind = files.learns_by
    assert kind is not None, "the caller has looked"
    train = [record for record in files.metrics if record.get("kind", "train") == "train"]
    steps, planned = _reached(train, files)
    files = dataclasses.replace(files, verdict=_verdict_of(files, kind, planned))
    arms = arms_view(files)
    return {
        "name": files.path.resolve().name,
        "question": QUESTIONS[kind],
        "verdict": _top(files, kind, steps, planned),
        "arms": arms,
        "learning": LearningView(
            kind=kind,
            question=QUESTIONS[kind],
            steps=steps,
            planned=planned,
            charts=reward_charts(files.metrics) if kind == "grpo" else preference_charts(files.metrics, _beta(files)),
            still=", ".join(never_moved(train)) if kind == "grpo" else "",
            loss=_about_the_loss(train) if kind == "grpo" else "",
            phases=_phases(train),
            alarms=[(_when(seen), seen) for seen in _alarms(files, train, kind)],
            watched=WATCHED[kind],
            preflight=_preflight(files.preflight),
            next=_next(files, kind, done=steps >= planned and bool(files.adapter)),
        ),
        "answers": answers_view(files.rollouts, files.metrics),
        "ledger": ledger_view(files.ledger),
        "settings": flat(files.config),
        "environment": [(key, value) for key, value in flat(files.environment) if key != "schema"],
        "adapter": files.adapter,
        "notices": files.notices,
    }


def _reached(train: list[Record], files: RunFiles) -> tuple[int, int]:
    """(steps that were done, steps that were meant)"""
    done = max((int(number(record.get("step")) or 0) for record in train), default=0)
    said = number(train[-1].get("num_steps")) if train else None
    meant = number(mapping(files.config.get("train")).get("steps"))
    return done, int(said if said is not None else meant if meant is not None else done)


def _verdict_of(files: RunFiles, kind: str, planned: int) -> Record:
    """What verdict.json says, if the run came to its end; else what the evaluations so far say."""
    if text_of(files.verdict.get("decision")) in WORDS:
        return files.verdict
    try:
        if kind == "grpo":
            return reward_verdict(values_by_step(files.metrics), planned).to_dict()
        return preference_verdict(evaluations(files.metrics), planned, votes=files.config.get("votes") is not None).to_dict()
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # records that are not ours: the page says so and goes on
        files.notices.append(f"{files.path / 'metrics.jsonl'}: its evaluations do not have the form Sapwood writes ({error!r}).")
        return {}


def _top(files: RunFiles, kind: str, steps: int, planned: int) -> VerdictView:
    record = files.verdict
    change = mapping(record.get("change"))
    if change:  # rewards beyond 0..1 have no points: what is said stands in words alone
        decision = text_of(record.get("decision"))
        view = VerdictView(decision.replace(" ", "-"), WORDS.get(decision, "Not shown"), text_of(record.get("line")), "", None, None, [])
    else:
        view = verdict_view(files)
    facts = [("Steps", f"{steps:,} of {planned:,}"), *_of_the_run(files, kind)]
    word, look = view.word, view.kind
    caveats = [CAVEATS[kind], *view.caveats] if view.difference or change else view.caveats
    if steps < planned:
        word, look = "Not finished", "none"
        caveats = [f"The run was at step {steps:,} of {planned:,} when this page was made. What it says is of that state.", *caveats]
    return dataclasses.replace(view, word=word, kind=look, caveats=caveats, facts=[*facts, *view.facts])


def _of_the_run(files: RunFiles, kind: str) -> list[tuple[str, str]]:
    start = mapping(files.config.get("start_from"))
    facts = [("Model", text_of(start.get("start") or start.get("model")))]
    train = mapping(files.config.get("train"))
    if kind == "grpo":
        rewards = files.config.get("rewards")
        names = [*rewards] if isinstance(rewards, list) and rewards else [text_of(mapping(files.config.get("gym")).get("task"))]
        facts.append(("Rewards", ", ".join(map(text_of, names)) or "functions of the caller's own"))
        facts.append(("A step", f"{text_of(train.get('prompts'))} prompts × {text_of(train.get('group'))} answers"))
        return facts
    margins = [(record.get("step"), number(record.get("margin"))) for record in files.metrics if record.get("kind") == "eval"]
    if margins and margins[-1][1] is not None:
        first = margins[0][1]
        came = f"{signed(first, 3)} → " if first is not None and len(margins) > 1 else ""
        facts.append(("Held-out margin", f"{came}{signed(margins[-1][1], 3)}"))
    loss = "KTO, from votes" if files.config.get("votes") is not None else text_of(train.get("loss"))
    return [*facts, ("Loss", loss), ("β", text_of(train.get("beta")))]


def _about_the_loss(train: list[Record]) -> str:
    moved = [record for record in train if number(record.get("grad_norm"))]
    loss, gradient = (number(moved[-1].get(key)) if moved else None for key in ("loss", "grad_norm"))
    if loss is None or gradient is None:
        return ABOUT_THE_LOSS
    return f"The loss of the last update was {signed(loss, 4)}, its gradient {GRADIENT.words(gradient)}. {ABOUT_THE_LOSS}"


def _phases(train: list[Record]) -> list[Phase]:
    spent = seconds_by_phase(train)
    whole = sum(spent.values())
    return [Phase(f"phase-{place}", words, _time(value), 100 * value / whole) for place, (words, value) in enumerate(spent.items())]


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _alarms(files: RunFiles, train: list[Record], kind: str) -> list[Seen]:
    try:
        return seen_in(train) if kind == "grpo" else seen_in(files.metrics, preference_signs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        files.notices.append(f"{files.path / 'metrics.jsonl'}: its steps lack what the alarms look at ({error!r}).")
        return []


def _when(seen: Seen) -> str:
    return f"from step {seen.first} on" if seen.still else f"at steps {seen.first} to {seen.last}, and not any more"


def _preflight(record: Record) -> list[tuple[str, str]]:
    """What a few prompts showed before step 1."""
    facts = []
    if (prompts := number(record.get("prompts"))) is not None and (group := number(record.get("group"))) is not None:
        facts.append(("Tried", f"{prompts:.0f} prompts × {group:.0f} answers"))
    figures = {figure.key: figure for figure in REWARD_FIGURES}
    for key, words in (("solved", "Solved"), ("spread", "Spread"), ("dead", "Dead groups"), ("length", "Tokens"), ("cut", "Cut")):
        if (value := number(record.get(key))) is not None:
            facts.append((words, figures[key].words(value)))
    return facts


def _beta(files: RunFiles) -> float:
    return number(mapping(files.config.get("train")).get("beta")) or 1.0


def _next(files: RunFiles, kind: str, *, done: bool) -> list[tuple[str, str]]:
    path = shlex.quote(str(files.path))
    if not done:
        return [(f"sapwood {kind} {path}", "goes on where it was stopped, to the same bits on a CPU")]
    found = [(f"sapwood chat {path}", "talk to it"), (f"sapwood eval FILE --adapter {path}", "measure it on other questions")]
    if kind == "grpo":
        found.append((f"sapwood distill FILE --start {path}", "keep its right answers as rows to imitate"))
    found.append((f"sapwood grpo FILE --start {path}" if kind == "grpo" else f"sapwood dpo FILE --start {path}", "train on from here"))
    return [*found, (f"sapwood export {path} --as gguf", "take it elsewhere")]
