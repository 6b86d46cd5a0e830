"""The nouns that every room shares, and the two protocols between them.

Text side:   `Message` → `Conversation` → `Prompt` → `Completion`; a row may also be a `Document` or a `Preference`
Token side:  `Row` (prompt, completion, weights) → `Example` (all rows of one conversation, pair, group or item)
Scoring:     `Item` → `Score`, or `Rewarded` where several scores are weighed together

All are immutable. None knows how it is rendered, trained or scored. Legend for names that end in a shape,
here and everywhere: B rows, T tokens in the flat row, N targets, E uses of targets, V vocabulary, D width,
H heads, K head width, P prompts, G samples a prompt.
"""

from sapwood.records.conversation import Conversation, Document, Message, Preference, Record, Source, ToolCall
from sapwood.records.evaluation import Item, Score
from sapwood.records.facts import FACT, Facts, fact_of, facts_of, hash_of_rows
from sapwood.records.media import MEDIA_KINDS, Content, Media, MediaKind, MediaSpan
from sapwood.records.mixture import Mixture, mixture_of
from sapwood.records.protocols import LogProber, Sampler
from sapwood.records.rewards import Judge, Rewarded
from sapwood.records.rows import Example, Row
from sapwood.records.sampling import Completion, Constraint, Ended, Prompt, SamplingParams

__all__ = [
    "FACT",
    "MEDIA_KINDS",
    "Completion",
    "Constraint",
    "Content",
    "Conversation",
    "Document",
    "Ended",
    "Example",
    "Facts",
    "Item",
    "Judge",
    "LogProber",
    "Media",
    "MediaKind",
    "MediaSpan",
    "Message",
    "Mixture",
    "Preference",
    "Prompt",
    "Record",
    "Rewarded",
    "Row",
    "Sampler",
    "SamplingParams",
    "Score",
    "Source",
    "ToolCall",
    "fact_of",
    "facts_of",
    "hash_of_rows",
    "mixture_of",
]
