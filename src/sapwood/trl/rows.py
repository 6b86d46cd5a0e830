"""What people hand to a trainer as data → examples of rows, each accounted for.

In: a `datasets.Dataset`, a list of dictionaries, any iterable of them, or the path of a file; a formatting function. Out:
`Prepared`, as `sapwood sft` has it: rows held in code are written as JSON Lines first, so that messages about them name a line,
nothing of them stays in memory, and every format that files may have is read. Rows of tokens (`input_ids`) become examples
as they are. Left out on purpose: joining and cutting rows; a forest needs neither.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson

from sapwood.chat import Chat
from sapwood.data import Ledger
from sapwood.errors import ConfigError, DataError, storage
from sapwood.recipes import Screen
from sapwood.recipes.prepare import DataConfig, Prepared, prepare, scan_files
from sapwood.records import Example, Row, Source
from sapwood.trl.config import SFTConfig
from sapwood.trl.options import Options

CONVERSATIONS = ("messages", "conversations", "prompt", "instruction", "question")
"""Columns by which a row is more than a text, in whatever column that text stands."""
MASKS = ("labels", "assistant_masks", "completion_mask", "weights")
"""Columns beside `input_ids` that say what is trained: `labels` by -100, the others by 0."""
SPLITS = {"train_dataset": ("train",), "eval_dataset": ("test", "validation", "valid", "val", "eval", "dev")}

Formatting = Callable[[dict[str, Any]], Any]


def chosen_split(dataset: Any, name: str, notes: list[str]) -> Any:
    """One data set of several by name, as `load_dataset` gives them. Raises `ConfigError` where none is meant clearly."""
    if not isinstance(dataset, Mapping):
        return dataset
    found = next((split for split in SPLITS[name] if split in dataset), None)
    if found is None and len(dataset) == 1:
        found = next(iter(dataset))
    if found is None:
        listed = ", ".join(map(str, list(dataset)[:6]))
        raise ConfigError(f"{name} holds several data sets: {listed}. Give one of them, such as {name}=dataset[{next(iter(dataset))!r}].")
    notes.append(f"{name} holds several data sets; {found!r} is taken.")
    return dataset[found]


@dataclass(frozen=True)
class Staged:
    """Rows that were taken from what people gave, and wait for a chat."""

    name: str
    """The argument's name, for messages."""
    file: str | None
    """Where they lie; None for rows of tokens."""
    first: Mapping[str, Any] | None
    """The first row; None where people named a file of their own."""
    examples: tuple[Example, ...] = ()
    """Rows of tokens."""

    def texts(self, field: str) -> bool:
        """Whether the rows are texts in the column `field`, without turns."""
        return self.first is not None and field in self.first and not any(column in self.first for column in CONVERSATIONS)


def staged(dataset: Any, name: str, folder: Path, args: SFTConfig, formatting: Formatting | None, notes: list[str]) -> Staged:
    """Take rows: those in code into a file. Raises `DataError` and `ConfigError` naming the row or the argument."""
    if isinstance(dataset, str | Path):
        if formatting is not None:
            raise ConfigError(f"formatting_func is for rows held in code; {name} is the file {dataset}. Load its rows, or leave it out.")
        return Staged(name, str(dataset), None)
    first, rows = opened_rows(dataset, name)
    if name == "train_dataset":
        rows = as_many_as_needed(dataset, rows, args, args.per_device_train_batch_size * args.gradient_accumulation_steps, notes)
    if "input_ids" in first and formatting is None:
        return Staged(name, None, first, tuple(tokenised_example(row, Source(name, number)) for number, row in enumerate(rows, 1)))
    if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        raise ConfigError(f"dataset_kwargs has skip_prepare_dataset, but the rows of {name} have no `input_ids`: {listed(first)}.")
    file = folder / f"{name}.jsonl"
    head = write_rows(rows, file, name, formatting, nulls=hasattr(dataset, "features"), notes=notes)
    return Staged(name, str(file), head)


def as_many_as_needed(
    dataset: Any, rows: Iterator[dict[str, Any]], args: Options, a_step: int, notes: list[str]
) -> Iterator[dict[str, Any]]:
    """Of a stream, which has no end that is known, the rows that `max_steps` train, `a_step` each."""
    if hasattr(dataset, "__len__") or args.max_steps <= 0:
        return rows
    most = args.max_steps * a_step
    notes.append(f"train_dataset is a stream: of it the first {most:,} rows are taken, as many as max_steps={args.max_steps} trains.")
    return itertools.islice(rows, most)


def prepared_from(rows: Staged, chat: Chat, args: SFTConfig, screen: Screen) -> Prepared:
    """Rows made ready to train on. Raises `DataError` and its kin with file:line, where a row of code is a line."""
    if rows.file is None:
        return _tokenised(rows)
    config = reading_of(args, rows)
    try:
        return prepare(scan_files([rows.file], config, lambda done, total, what: None), chat, config, screen)
    except DataError as error:
        raise DataError(re.sub(r"pass --max-refused ([\d.]+)", r"give SFTConfig(max_refused=\1)", str(error))) from None


def opened_rows(dataset: Any, name: str) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The first row, and all of them. Raises `ConfigError` for what holds no rows."""
    if not isinstance(dataset, Iterable):
        raise ConfigError(
            f"{name} is a {type(dataset).__name__}. Give a datasets.Dataset, a list of dictionaries, or the path of a file of rows."
        )
    rows = iter(dataset)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{name} holds no rows. Give some.")
    if not isinstance(first, Mapping):
        raise ConfigError(f"{name} holds {type(first).__name__} objects; each row must be a dictionary, such as {{'messages': […]}}.")
    return dict(first), itertools.chain([first], rows)


def reading_of(args: SFTConfig, rows: Staged) -> DataConfig:
    """How the rows are read: as conversations wherever they can be, else as texts from the column that was named."""
    field = args.dataset_text_field
    if rows.texts(field):
        columns = (f"text={field}",) if field != "text" else ()
        return DataConfig(held_out=0, max_refused=args.max_refused, format="text", columns=columns)
    named = "dataset_text_field" in args.given and field != "text"
    if named and rows.first is not None and field not in rows.first and "text" not in rows.first:
        raise ConfigError(f"dataset_text_field is {field!r}, but the rows of {rows.name} have no such column: {listed(rows.first)}.")
    return DataConfig(held_out=0, max_refused=args.max_refused)


def write_rows(
    rows: Iterable[Mapping[str, Any]], file: Path, name: str, formatting: Formatting | None, *, nulls: bool, notes: list[str]
) -> dict[str, Any]:
    """Write rows as JSON Lines; the first of them. `nulls` leaves out the nulls with which Arrow fills up nested columns.

    Raises `DataError` for a value that is neither JSON nor an image, `StorageError` where the disk refuses.
    """
    removed = 0
    head: dict[str, Any] = {}
    with storage(file, "write the rows to"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            for number, row in enumerate(rows, 1):
                content: Any = dict(row) if formatting is None else _formatted(formatting, dict(row), f"{name}, row {number}")
                if nulls:
                    content, count = _without_nulls(content)
                    removed += count
                head = head or content
                try:
                    out.write(orjson.dumps(content, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS) + b"\n")
                except TypeError as error:
                    raise DataError(f"{name}, row {number}: {error}. Give text, numbers, lists, objects or images.") from None
    if removed:
        notes.append(f"{name}: {removed:,} nulls inside nested columns are left out; Arrow puts them where rows have different keys.")
    return head


def _formatted(formatting: Formatting, row: dict[str, Any], where: str) -> dict[str, Any]:
    """What a formatting function makes of one row: a text, or messages. Raises `ConfigError` for anything else."""
    try:
        made = formatting(row)
        if isinstance(made, list) and not (made and isinstance(made[0], Mapping)):
            raise TypeError("a list is what a function for batches gives")
    except Exception as error:  # noqa: BLE001 - whatever it raises: before TRL 0.19 it was called with a batch, and may still want one
        try:
            made = formatting({column: [value] for column, value in row.items()})
        except Exception:  # noqa: BLE001 - what it said of one row is what counts
            raise ConfigError(
                f"{where}: formatting_func failed with {type(error).__name__}: {error}. It is called with one row."
            ) from error
        made = made[0] if isinstance(made, list) and len(made) == 1 else made
    if isinstance(made, str):
        return {"text": made}
    if isinstance(made, list) and made and isinstance(made[0], Mapping):
        return {"messages": made}
    raise ConfigError(
        f"{where}: formatting_func returned a {type(made).__name__}. It takes one row, and returns its text, or a list of messages."
    )


def _without_nulls(value: Any, depth: int = 0) -> tuple[Any, int]:
    """The value without null entries of objects below the row itself, and how many there were."""
    if isinstance(value, Mapping):
        kept, count = {}, 0
        for key, entry in value.items():
            if entry is None and depth:
                count += 1
                continue
            kept[key], below = _without_nulls(entry, depth + 1)
            count += below
        return kept, count
    if isinstance(value, list):
        parts = [_without_nulls(entry, depth + 1) for entry in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    return value, 0


def _plain(value: Any) -> Any:
    """Values that JSON has no word for: images become addresses that hold their bytes."""
    if hasattr(value, "save") and hasattr(value, "getpixel"):
        buffer = io.BytesIO()
        value.save(buffer, format="PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} is nothing that a row of text can hold")


def _tokenised(rows: Staged) -> Prepared:
    """Rows of tokens, each trained where its mask says. They are held in memory, as they came."""
    ledger = Ledger(len(rows.examples))
    for example in rows.examples:
        trained = sum(int(np.count_nonzero(one.weights_T)) for one in example.rows)
        ledger.train(example.source, trained_tokens=trained, prompt_tokens=example.length - trained)
    ledger.assert_whole()
    return Prepared([], [], list(rows.examples), [], ledger, [f"{rows.name}: rows of tokens, taken as they are"])


def tokenised_example(row: Mapping[str, Any], source: Source) -> Example:
    """One row of `input_ids`, with `labels`, `assistant_masks`, `completion_mask` or `weights` of the same length, or none of them.

    What stands before the first trained token is the prompt; the very first token has nothing to be predicted from.
    Raises `DataError` naming the row.
    """
    ids_T = np.asarray(row["input_ids"], dtype=np.int64).reshape(-1)
    masks = [column for column in MASKS if row.get(column) is not None]
    weights_T = np.ones(len(ids_T), dtype=np.float32)
    for column in masks:
        mask_T = np.asarray(row[column]).reshape(-1)
        if len(mask_T) != len(ids_T):
            raise DataError(f"{source}: {len(ids_T)} `input_ids` and {len(mask_T)} `{column}`. Give one for each token.")
        if column == "labels":
            trained_T = mask_T != -100
            if not np.array_equal(mask_T[trained_T], ids_T[trained_T]):
                raise DataError(
                    f"{source}: `labels` differ from `input_ids` where they are not -100. A label is the token at its own place."
                )
            weights_T *= trained_T
        else:
            weights_T *= mask_T.astype(np.float32)
    trained = np.flatnonzero(weights_T[1:] > 0)
    if not len(trained):
        raise DataError(f"{source}: no token is trained. Give the row a token of a weight above 0, or leave it out.")
    begin, end = int(trained[0]) + 1, int(trained[-1]) + 2
    return Example((Row(ids_T[:begin], ids_T[begin:end], weights_T[begin:end]),), source)


class WholeTexts(Sequence[Example]):
    """Examples of which every token is trained, prompts included: the last row of each, which holds the others' texts."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return WholeTexts(self._examples[index])
        example = self._examples[index]
        row = example.rows[-1]
        if row.media:
            raise DataError(f"{example.where}: prompts with images or sounds cannot be trained. Leave assistant_only_loss out.")
        whole_T = np.concatenate([row.prompt_T[1:], row.completion_T])
        return Example((Row(row.prompt_T[:1], whole_T, np.ones(len(whole_T), dtype=np.float32)),), example.source, example.meta)


def listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(row)[:12]))
