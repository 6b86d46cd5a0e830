"""Several samples an item: pass@k, pass^k, maj@k, and how much the samples differ.

In: scores or answers of n samples of each item. Out: one number an item; intervals over items are `stats`' work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb

from sapwood.errors import ConfigError


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that at least one of k samples, drawn of n without putting back, is right: 1 − C(n−c, k) / C(n, k).

    Unbiased for k fresh samples (Chen et al. 2021, arXiv:2107.03374, equation 1). Raises `ConfigError` for k > n: fewer samples
    cannot say it.
    """
    _check(n, right, k)
    return 1 - comb(n - right, k) / comb(n, k)


def pass_hat_k(n: int, right: int, k: int) -> float:
    """Probability that all of k samples are right: C(c, k) / C(n, k) (τ-bench, arXiv:2406.12045 §2)."""
    _check(n, right, k)
    return comb(right, k) / comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], right: Sequence[bool], k: int) -> float:
    """Probability that the commonest answer of k samples is right, over all choices of k of the n samples.

    `answers` are what the scorer took to be the answer; None (no answer) never wins a vote. A tie gives each of the tied answers
    its share. Exact by counting: the number of choices is a product of binomials over the distinct answers.
    """
    _check(len(answers), sum(right), k)
    if len(right) != len(answers):
        raise ConfigError(f"maj_at_k got {len(answers)} answers and {len(right)} marks; give one mark an answer.")
    counts = Counter(answer for answer in answers if answer is not None)
    share_right = {answer: sum(r for a, r in zip(answers, right, strict=True) if a == answer) / n for answer, n in counts.items()}
    silent = sum(answer is None for answer in answers)
    # ways[votes for the leader][number of leaders][chosen] would need the leader known: so sum over each leader and its votes
    total = 0.0
    for leader, available in counts.items():
        others = [n for answer, n in counts.items() if answer != leader]
        for votes in range(1, min(available, k) + 1):
            total += share_right[leader] * comb(available, votes) * _shared(others, silent, k - votes, votes)
    return total / comb(len(answers), k)


def _shared(others: Sequence[int], silent: int, rest: int, votes: int) -> float:
    """Ways to choose `rest` of the others with none above `votes`, each weighted by 1 / (1 + how many reach `votes`)."""
    ways: dict[tuple[int, int], int] = {(0, 0): 1}  # (chosen so far, tied so far) → ways
    for available in others:
        grown: dict[tuple[int, int], int] = {}
        for (chosen, tied), count in ways.items():
            for taken in range(min(available, votes, rest - chosen) + 1):
                key = (chosen + taken, tied + (taken == votes))
                grown[key] = grown.get(key, 0) + count * comb(available, taken)
        ways = grown
    return sum(count * comb(silent, rest - chosen) / (1 + tied) for (chosen, tied), count in ways.items() if rest - chosen <= silent)


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Share of word n-grams that differ, over all texts together (Li et al. 2016, arXiv:1510.03055 §5.4); 1 where there are none."""
    grams = [tuple(words[i : i + n]) for text in texts for words in [text.split()] for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def distinct_answers(answers: Sequence[Hashable | None]) -> float:
    """Share of answers that differ from all earlier ones: 1 where every sample says something else, 1/n where all agree."""
    return len(set(answers)) / len(answers) if answers else 1.0


def _check(n: int, right: int, k: int) -> None:
    if not (0 <= right <= n and 1 <= k <= n):
        raise ConfigError(f"{right} right of {n} samples, k = {k}: k must lie in 1..{n}. Draw at least k samples an item.")
