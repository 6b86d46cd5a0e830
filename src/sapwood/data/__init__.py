"""Files → conversations, the ledger of every row, and splits that do not leak.

`read` gives conversations and refusals; `split` says which conversations are held out; `Ledger` accounts for each row.
All of it works without torch, so that a broken row is named in seconds, before a model loads.
"""

from sapwood.data.columns import Only, Text, columns_from
from sapwood.data.formats import FORMATS, Format
from sapwood.data.ledger import Ledger
from sapwood.data.reading import Reading, read
from sapwood.data.refusal import Refusal
from sapwood.data.splitting import split

__all__ = ["FORMATS", "Format", "Ledger", "Only", "Reading", "Refusal", "Text", "columns_from", "read", "split"]
