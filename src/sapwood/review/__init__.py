"""People as judges: blind pairs of answers, their votes, and what the votes say.

Two arms' scores of a run in; `pairs.jsonl` and `votes.jsonl` of the run out, and a win rate with an interval. What stands here works on
records alone. `sapwood review` is made of the modules below, which need the extra `web`:

    sources → batch → desk (raters) · experts → results · raters → exporting      in the tables of `tables`, opened by the room `store`
    masking · rendering · diffs                                                   what a page may show
    web                                                                           the application
"""

from sapwood.review.pairs import BlindPair, Pair, blind_pairs, pairs_from
from sapwood.review.votes import Verdict, Vote, WinRate, agreement, correct, standing, votes_from, win_rate

__all__ = [
    "BlindPair",
    "Pair",
    "Verdict",
    "Vote",
    "WinRate",
    "agreement",
    "blind_pairs",
    "correct",
    "pairs_from",
    "standing",
    "votes_from",
    "win_rate",
]
