"""`sapwood VERB …`: finds the verb, hands it its arguments, and turns errors into one paragraph.

    quickstart   the whole chain on a task of ours, in minutes
    sft          fine-tune on your conversations, and prove that it helped
    dpo          learn from preferred answers: pairs, or single votes
    grpo         learn from rewards: verifiers, scorers, functions of your own
    distill      a teacher's right answers, as rows to imitate
    reason       the stages by which a model learns to reason, from a recipe
    sweep        a small grid of settings on the same rows, and which of them can be told apart
    decide       should you fine-tune, and on how many rows?
    eval         measure a model, or a run's adapter, on conversations
    study        several ways to answer, judged by a plan: ship it, or not
    chat         talk to a model or a run
    serve        an OpenAI-compatible server for a model or a run
    ab           what an A/B test of served models shows, and how many units it takes
    plan         what a run will take, before it begins: memory, time, money, disk
    doctor       what a model's template does, and what your rows become
    template     what models or templates make of one conversation, side by side
    export       a model for the programs of others: merged, PEFT, GGUF; each compared with what was trained
    items        a set of test items, built from logs of real queries
    compare      runs, evaluations or studies side by side, item by item
    review       people judge answers in the browser, blind; experts correct them
    runs         what you have trained: list, show, compare, prune, delete
    pull         fetch a model or a data set by name
    bench        measured side by side with other tools (from a checkout)

Exit codes: 0 done, 1 an error that a person can act on, 2 a wrong command line, 130 stopped by the keyboard; of `study`, 3 do not ship,
4 inconclusive.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from sapwood import __version__
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, SapwoodError

VERBS = {
    "quickstart": "the whole chain on a task of ours, in minutes",
    "sft": "fine-tune on your conversations, and prove that it helped",
    "dpo": "learn from preferred answers: pairs, or single votes",
    "grpo": "learn from rewards: verifiers, scorers, functions of your own",
    "distill": "a teacher's right answers, as rows to imitate",
    "reason": "the stages by which a model learns to reason, from a recipe",
    "sweep": "a small grid of settings on the same rows, and which of them can be told apart",
    "decide": "should you fine-tune, and on how many rows?",
    "eval": "measure a model, or a run's adapter, on conversations",
    "study": "several ways to answer, judged by a plan: ship it, or not",
    "chat": "talk to a model or a run",
    "serve": "an OpenAI-compatible server for a model or a run",
    "ab": "what an A/B test of served models shows, and how many units it takes",
    "plan": "what a run will take, before it begins: memory, time, money, disk",
    "doctor": "what a model's template does, and what your rows become",
    "template": "what models or templates make of one conversation, side by side",
    "export": "a model for the programs of others: merged, PEFT, GGUF; each compared with what was trained",
    "items": "a set of test items, built from logs of real queries",
    "compare": "runs, evaluations or studies side by side, item by item",
    "review": "people judge answers in the browser, blind; experts correct them",
    "runs": "what you have trained: list, show, compare, prune, delete",
    "pull": "fetch a model or a data set by name",
    "bench": "measured side by side with other tools (from a checkout)",
}
GOES_ON = {verb: f"sapwood {verb}" for verb in ("sft", "dpo", "grpo", "distill", "decide", "sweep", "study")} | {
    "quickstart": "sapwood sft"
}
"""Verbs that leave a run directory, and who goes on with one that is named alone."""
WIDEST = 120
"""Columns of the list of verbs at most."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"sapwood {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    try:
        if verb not in VERBS:
            raise ConfigError(f"There is no verb {verb!r}.{did_you_mean(verb, list(VERBS))} Verbs: {', '.join(VERBS)}.")
        run: Callable[[list[str]], None] = import_module(f"sapwood.cli.{verb}_verb").run
        with _sigterm_stops():
            run(rest)
    except SapwoodError as error:
        print(f"sapwood {verb}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as stop:
        print(f"\nStopped.{_kept(verb, stop)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except SystemExit as stop:  # the flag parser has shown its help, or what is wrong with a flag
        return stop.code if isinstance(stop.code, int) else 2
    return 0


def _kept(verb: str, stop: KeyboardInterrupt) -> str:
    """How to go on with the run directory that was open last, where one was (see `Run`)."""
    run = next(reversed(getattr(stop, "__notes__", [])), None)
    if verb not in GOES_ON or run is None:
        return ""
    return f" What was finished is kept; go on with: {shlex.join([*GOES_ON[verb].split(), run])}"


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """A machine that asks for an end gets what Ctrl-C gives: a checkpoint of the last whole step, and a word."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # the caller keeps its own handler
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _help() -> str:
    width = max(40, min(shutil.get_terminal_size().columns, WIDEST))
    verbs = "\n".join(
        textwrap.fill(what, width, initial_indent=f"  {verb:<12}", subsequent_indent=" " * 14) for verb, what in VERBS.items()
    )
    return (
        f"Sapwood {__version__} fine-tunes language models and proves that they got better.\n\n{verbs}\n\n"
        "Every verb takes --help, and --json [FILE.json] for machines.\nBegin with: sapwood quickstart"
    )
