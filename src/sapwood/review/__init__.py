"""People as judges: blind pairs of answers, their votes, and what the votes say.

Two arms' scores of a run in; `pairs.jsonl` and `votes.jsonl` of the run out, and a win rate with an interval.
Left out for now: the web pages, rubrics, assignment of raters, adjudication.
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
