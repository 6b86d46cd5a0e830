"""Files in; examples to train, conversations to hold out, and the ledger of every row out. No model is loaded yet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sapwood.assets import Report, resolve_data
from sapwood.chat import Chat
from sapwood.data import Format, Ledger, Only, Reading, Refusal, columns_from, read, split
from sapwood.errors import ConfigError, DataError, TemplateError
from sapwood.recipes import bfcl
from sapwood.records import Conversation, Example


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Reading and splitting."""

    format: Format | None = None
    """The files' format, where it should not be found from the rows."""
    columns: tuple[str, ...] = ()
    """Names of your columns, such as `prompt=question completion=answer`."""
    prompt: str | None = None
    """Your column that asks, such as `question`; or a text made from columns, such as `"Title: {title}"`."""
    completion: str | None = None
    """Your column that answers, such as `category`; or a text made from columns."""
    system: str | None = None
    """A system message for rows that have none."""
    only: tuple[str, ...] = ()
    """Read only rows with these values, such as `lang=de lang=en split=train`: one of those named for each column."""
    held_out: float = 0.1
    """Held out for evaluation: a share below 1, or a number of conversations; 0 holds nothing out. At most 200 of a share."""
    cluster: str | None = None
    """Column whose equal values belong together (a document, a customer): they land on one side, and are one cluster in intervals."""
    reference: str | None = None
    """Column that the scorer compares with, where it is not the conversation's last answer."""
    max_refused: float = 0.02
    """Share of rows that may be refused before the run stops."""
    split_seed: int = 0
    """Seed of who is held out."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.held_out) or self.held_out < 0 or (self.held_out > 1 and self.held_out != int(self.held_out)):
            raise ConfigError(f"held_out is {self.held_out}; give a share below 1, a whole number of conversations, or 0.")


@dataclass(frozen=True)
class Prepared:
    """Everything that training and evaluation read."""

    train: list[Conversation]
    held_out: list[Conversation]
    examples: list[Example]
    held_out_examples: list[Example]
    ledger: Ledger
    notes: list[str] = field(default_factory=list)


MOST_HELD_OUT = 200
"""More than this many held-out conversations cost evaluation time and narrow the interval little."""


def read_files(files: Sequence[str], config: DataConfig, report: Report) -> Reading:
    """Read the rows of files, or of a data set or task by name. Raises `DataError` and its kin with file:line."""
    if tuple(files) == (bfcl.TASK,):
        return bfcl.read_calls(report)
    paths: list[Path] = []
    for name in files:
        path = Path(name)
        if not path.exists() and not path.suffix:
            path = resolve_data(name, report=report)
        paths.append(path)
    return read(
        paths,
        format=config.format,
        columns=columns_from(config.columns, prompt=config.prompt, completion=config.completion, system=config.system),
        only=Only.parse(config.only) if config.only else None,
    )


def prepare(reading: Reading, chat: Chat, config: DataConfig) -> Prepared:
    """Render every conversation; those that cannot be trained exactly are refused with their place and reason.

    Raises `DataError` where more than `max_refused` of all rows are refused, or nothing is left.
    """
    ledger = Ledger(reading.total, reading.left_out)
    ledger.refuse(*reading.refused)
    conversations: list[Conversation] = []
    examples: list[Example] = []
    for conversation in reading.conversations:
        try:
            example = chat.example(conversation)
        except (DataError, TemplateError) as error:
            ledger.refuse(_refusal(conversation, str(error)))
            continue
        arguments = example.meta.get("template_arguments")
        if arguments:  # what training needed, evaluation must send too
            conversation = dataclasses.replace(conversation, template_arguments=arguments)
        conversations.append(conversation)
        examples.append(example)
    ledger.check(config.max_refused)
    kept, held = _sides(conversations, config)
    for index in kept:
        trained = sum(int((row.weights_T > 0).sum()) for row in examples[index].rows)
        ledger.train(conversations[index].source, trained_tokens=trained, prompt_tokens=examples[index].length - trained)
    for index in held:
        ledger.hold_out(conversations[index].source)
    ledger.assert_whole()
    return Prepared(
        [conversations[index] for index in kept],
        [conversations[index] for index in held],
        [examples[index] for index in kept],
        [examples[index] for index in held],
        ledger,
        reading.lines_for_people(),
    )


def _sides(conversations: list[Conversation], config: DataConfig) -> tuple[list[int], list[int]]:
    if config.held_out == 0:
        return list(range(len(conversations))), []
    wanted = max(1, min(MOST_HELD_OUT, round(config.held_out * len(conversations)))) if config.held_out < 1 else int(config.held_out)
    if wanted >= len(conversations):
        raise DataError(
            f"{wanted} conversation{'s' * (wanted != 1)} should be held out, but there {'is' if len(conversations) == 1 else 'are'} only "
            f"{len(conversations)} in all. Add rows, or lower --held-out; 0 holds nothing out."
        )
    return split(conversations, held_out=wanted, seed=config.split_seed, cluster=config.cluster)


def _refusal(conversation: Conversation, text: str) -> Refusal:
    """The chat's paragraph, "place: what, what to do", as the ledger's reason and fix."""
    reason = text.removeprefix(conversation.where).lstrip(", :")
    head, _, fix = reason.partition(". ")
    return Refusal(conversation.source, head, fix)
