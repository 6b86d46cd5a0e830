"""Files in; examples to train, conversations to hold out, and the ledger of every row out. No model is loaded yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from sapwood.assets import Report
from sapwood.chat import Chat
from sapwood.data import Format, Ledger, Only, Reading, Refusal, columns_from, split
from sapwood.data.columns import Columns
from sapwood.data.formats import check_imitated
from sapwood.data.ledger import Located
from sapwood.data.locations import locate, weight_of
from sapwood.data.messages import Notes
from sapwood.data.packed import Packed
from sapwood.data.prepared import kept_scan, prepared_rows
from sapwood.data.preparing import made_of, refusal_of
from sapwood.data.reading import Scan
from sapwood.data.sequences import Order, PackedExamples, PackedRecords
from sapwood.data.splitting import split_keys
from sapwood.errors import ConfigError, DataError, TemplateError
from sapwood.recipes import bfcl
from sapwood.recipes.screen import Screen
from sapwood.records import Conversation, Document, Example, Mixture, Record, mixture_of


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
    choosing: float | None = None
    """Share of the held-out rows that choose (a state, the best of a sweep) and do not judge; a quarter where anything is chosen."""
    allow_urls: bool = False
    """Fetch images and sounds that rows name by an address in the web; rows that do are refused otherwise."""
    max_refused: float = 0.02
    """Share of rows that may be refused before the run stops."""
    split_seed: int = 0
    """Seed of who is held out."""
    cache: bool = True
    """Keep prepared rows in the cache folder, so that unchanged files start at once the next time."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.held_out) or self.held_out < 0 or (self.held_out > 1 and self.held_out != int(self.held_out)):
            raise ConfigError(f"held_out is {self.held_out}; give a share below 1, a whole number of conversations, or 0.")
        if self.choosing is not None and not 0 < self.choosing < 1:
            raise ConfigError(f"choosing is {self.choosing}; give a share between 0 and 1, or leave it out.")


@dataclass(frozen=True)
class Prepared:
    """Everything that training and evaluation read. The sequences are lists, or lie on the disk and make each entry when asked."""

    train: Sequence[Conversation | Document]
    held_out: Sequence[Conversation | Document]
    examples: Sequence[Example]
    held_out_examples: Sequence[Example]
    ledger: Ledger
    notes: list[str] = field(default_factory=list)
    cached: bool = False
    """Whether the rows were prepared in an earlier run and only read now."""
    mixture: Mixture | None = None
    """How often an epoch trains the rows of each name, where names have weights."""
    choosing_examples: Sequence[Example] = ()
    """Held out as well, and no part of `held_out`: their loss chooses the state that is the result, where one is chosen."""

    @property
    def watched_examples(self) -> Sequence[Example]:
        """Those whose loss is measured during training: the choosing ones where there are any, else all that are held out."""
        return self.choosing_examples or self.held_out_examples


MOST_HELD_OUT = 200
"""More than this many held-out conversations cost evaluation time and narrow the interval little."""
KEPT_REFUSED = 1000
"""Refused rows of one reason that the ledger holds whole; all of them stand in its file."""


CHOOSING = 0.25
"""Share of the held-out rows that choose a state instead of judging it."""
FEWEST_TO_CHOOSE = 8
"""Held-out rows below which they cannot be shared between choosing and judging."""


LOOKED_UP = 20_000
"""Most training rows that lookups, few-shot examples and statistics of the report see: evenly spread, so that memory has a bound."""


def conversations_among(rows: Sequence[Conversation | Document], most: int | None = None) -> list[Conversation]:
    """The conversations among prepared rows, or of `most` rows that are evenly spread over them."""
    places = range(len(rows)) if most is None or len(rows) <= most else (len(rows) * number // most for number in range(most))
    found = (rows[place] for place in places)
    return [row for row in found if isinstance(row, Conversation)]


def prepare_files(files: Sequence[str], chat: Chat, config: DataConfig, screen: Screen) -> Prepared:
    """Files, or a data set by name, made ready to train on: read, checked, rendered, tokenised, split, accounted for.

    Raises `DataError` and its kin with file:line, and `StorageError` where the disk refuses.
    """
    with screen.progress("reading") as advance:
        rows = scan_files(files, config, advance)
    return prepare(rows, chat, config, screen)


def set_apart(prepared: Prepared, config: DataConfig) -> Prepared:
    """Let a share of the held-out rows choose the trained state, and the others judge it.

    A state that was chosen by the very rows that judge it looks better than it is. What belongs together stays on one side.
    Raises `ConfigError` where too few are held out.
    """
    rows, examples = prepared.held_out, prepared.held_out_examples
    if len(rows) < FEWEST_TO_CHOOSE:
        raise ConfigError(
            "Some held-out rows choose a state or a setting by their loss, and the other held-out rows judge it. At least "
            f"{FEWEST_TO_CHOOSE} are needed, and {len(rows)} {'is' if len(rows) == 1 else 'are'} held out. Raise --held-out, or choose "
            "nothing."
        )
    judging, choosing = split(list(rows), held_out=config.choosing or CHOOSING, seed=config.split_seed, cluster=config.cluster)
    said = f"{len(choosing)} of the {len(rows)} held-out rows choose what is kept, and the other {len(judging)} judge it."
    return replace(
        prepared,
        held_out=[rows[index] for index in judging],
        held_out_examples=[examples[index] for index in judging],
        choosing_examples=[examples[index] for index in choosing],
        notes=[*prepared.notes, said],
    )


def scan_files(
    files: Sequence[str], config: DataConfig, report: Report, *, questions: bool = False, weighted: bool = False
) -> Scan | Reading:
    """Check every row of files, or of a data set or task by name, and hold none of a file's. Raises `DataError` with file:line.

    `questions` takes prompts without answers, too, if a column of references is named: see `prepare_questions`. `weighted`
    takes names with weights, such as `a.jsonl*2`; others who read files have no use for them.
    """
    if not weighted:
        _refuse_weights(files)
    if tuple(files) == (bfcl.TASK,):
        return bfcl.read_calls(report)
    found = kept_scan(
        locate(files, report),
        format=config.format,
        columns=_columns(config),
        only=_only(config),
        keep=config.cache,
        allow_urls=config.allow_urls,
        report=report,
    )
    if not (questions and _are_questions(found, config)):
        check_imitated(found.recipe.formats)
    return found


def _refuse_weights(files: Sequence[str]) -> None:
    for name in files:
        plain, weight = weight_of(name)
        if weight != 1:
            raise ConfigError(f"{name}: weights are for training with `sapwood sft`, and would change nothing here. Give {plain} alone.")


def _columns(config: DataConfig) -> Columns:
    return columns_from(config.columns, prompt=config.prompt, completion=config.completion, system=config.system)


def _only(config: DataConfig) -> Only | None:
    return Only.parse(config.only) if config.only else None


def prepare(rows: Scan | Reading, chat: Chat, config: DataConfig, screen: Screen | None = None) -> Prepared:
    """Render every conversation; those that cannot be trained exactly are refused with their place and reason.

    Rows of a `Reading` stay in memory; those of a `Scan` go into the cache, or into a folder that goes with this process.
    Raises `DataError` where more than `max_refused` of all rows are refused, or nothing is left.
    """
    if isinstance(rows, Reading):
        return _in_memory(rows, chat, config)
    screen = screen or Screen(quiet=True)
    with screen.progress("preparing") as advance:
        packed, cached = prepared_rows(rows, chat, cluster=config.cluster, keep=config.cache, report=advance, say=screen.say)
    ledger = Ledger(rows.total, rows.left_out)
    ledger.refuse_all(packed.refusals(), packed.refusals, KEPT_REFUSED)
    ledger.check(config.max_refused)
    kept, held = _sides_of(packed, config)
    file_B, line_B, fact_B = packed.columns("file", "line", "fact")
    trained = int(fact_B["trained"][kept].sum())
    ledger.train_all(
        Located(packed.files, file_B[kept], line_B[kept]),
        trained_tokens=trained,
        prompt_tokens=int(fact_B["length"][kept].sum()) - trained,
    )
    ledger.hold_out_all(Located(packed.files, file_B[held], line_B[held]))
    ledger.assert_whole()
    mixture = _mixture(rows, packed, file_B[kept])
    return Prepared(
        PackedRecords(packed, kept),
        PackedRecords(packed, held),
        PackedExamples(packed, kept),
        PackedExamples(packed, held),
        ledger,
        [*rows.lines_for_people(), *(mixture.lines_for_people() if mixture else [])],
        cached,
        mixture,
    )


def _mixture(rows: Scan, packed: Packed, file_B: NDArray[np.int32]) -> Mixture | None:
    """The mixture of the trained rows, `file_B` being the number of each row's file, or None where no name has a weight."""
    source_of = {str(file): source for source, part in enumerate(rows.parts) for file in part.files}
    sources = np.array([source_of.get(file, -1) for file in packed.files], dtype=np.int64)
    weights = [part.weight for part in rows.parts]
    if all(weight == 1 for weight in weights):
        return None
    source_B = sources[file_B]
    assert len(source_B) == 0 or source_B.min() >= 0, "every row comes from a file that was named"
    return mixture_of([part.name for part in rows.parts], weights, source_B)


def _are_questions(rows: Scan | Reading, config: DataConfig) -> bool:
    """Whether all rows are prompts without answers, with a column of references beside them."""
    return isinstance(rows, Scan) and config.reference is not None and set(rows.recipe.formats.values()) == {"prompts"}


def prepare_questions(rows: Scan | Reading, chat: Chat, config: DataConfig, screen: Screen) -> Prepared:
    """`prepare`; but prompts without answers are only rendered, to be asked and compared with their references."""
    if not isinstance(rows, Scan) or not _are_questions(rows, config):
        return prepare(rows, chat, config, screen)
    ledger = Ledger(rows.total, rows.left_out)
    asked: list[Conversation | Document] = []
    for form, source, value in rows.recipe.rows():
        taken: Record | Refusal = rows.recipe.record(form, source, value, Notes())
        if isinstance(taken, Conversation):
            try:
                chat.prompt(taken.messages, taken.tools, taken.template_arguments, where=taken.where)
            except (DataError, TemplateError) as error:
                taken = refusal_of(taken, str(error))
        if isinstance(taken, Conversation):
            asked.append(taken)
            ledger.hold_out(taken.source)
        else:
            assert isinstance(taken, Refusal), "a row of prompts is a conversation or a refusal"
            ledger.refuse(taken)
    ledger.check(config.max_refused)
    ledger.assert_whole()
    return Prepared(asked, [], [], [], ledger, [*rows.lines_for_people(), *ledger.lines_for_people()])


def _sides_of(packed: Packed, config: DataConfig) -> tuple[Order, Order]:
    """Which rows are trained on and which held out, by their stored digests."""
    wanted = _wanted(len(packed), config)
    if not wanted:
        return np.arange(len(packed)), np.empty(0, dtype=np.int64)
    key_B, label_B, labelled_B = packed.columns("key", "label", "labelled")
    if config.cluster is not None and not labelled_B.all():
        split(PackedRecords(packed, np.arange(len(packed))), held_out=wanted, seed=config.split_seed, cluster=config.cluster)
    labels = None if config.cluster is None else label_B
    return split_keys(key_B, labels, wanted=wanted, seed=config.split_seed, cluster=config.cluster)


def _wanted(count: int, config: DataConfig) -> int:
    """The number of conversations to hold out."""
    if config.held_out == 0:
        return 0
    wanted = max(1, min(MOST_HELD_OUT, round(config.held_out * count))) if config.held_out < 1 else int(config.held_out)
    if wanted >= count:
        raise DataError(
            f"{wanted} conversation{'s' * (wanted != 1)} should be held out, but there {'is' if count == 1 else 'are'} only "
            f"{count} in all. Add rows, or lower --held-out; 0 holds nothing out."
        )
    return wanted


def _in_memory(reading: Reading, chat: Chat, config: DataConfig) -> Prepared:
    ledger = Ledger(reading.total, reading.left_out)
    ledger.refuse(*reading.refused)
    conversations: list[Conversation | Document] = []
    examples: list[Example] = []
    for record in chain[Record](reading.conversations, reading.documents, reading.preferences):
        made = made_of(chat, record)
        if isinstance(made, Refusal):
            ledger.refuse(made)
        else:
            conversations.append(made[0])
            examples.append(made[1])
    ledger.check(config.max_refused)
    wanted = _wanted(len(conversations), config)
    kept, held = list(range(len(conversations))), list[int]()
    if wanted:
        kept, held = split(conversations, held_out=wanted, seed=config.split_seed, cluster=config.cluster)
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
