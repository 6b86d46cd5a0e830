"""How likely completions are, and whether greedy decoding would give them: what multiple-choice scoring asks.

In: rows. Out: for each row its log-probabilities and, token by token, whether it is the model's first choice. One forest holds
many rows, so a few-shot block, a question and what options have in common are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.attention import TreeAttention
from sapwood.forest import Forest, cut, plant
from sapwood.model.language_model import LanguageModel
from sapwood.records import Example, Row

PLACES = 256
"""Places whose logits exist at a time: the matrix of all of them would be larger than the model."""

Scored = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""(log-probability, first choice) of each completion token of a row."""


def score_rows(
    model: LanguageModel, rows: Sequence[Row], *, budget: int = 8192, on_progress: Callable[[int, int], None] | None = None
) -> list[Scored]:
    """In the order of the rows. A micro-batch holds at most `budget` unique tokens; `on_progress` hears (rows done, rows in all)."""
    scored: list[Scored] = [(np.empty(0), np.empty(0, dtype=np.bool_))] * len(rows)
    done = 0
    with torch.inference_mode():
        for batch in cut([Example((row,)) for row in rows], budget if model.shares_prefixes else 0):
            logprob_N, first_N = _targets(model, batch.forest)
            values_E, first_E = logprob_N[batch.forest.target_E], first_N[batch.forest.target_E]
            for index, example in enumerate(batch.examples):
                own = batch.forest.row_E == index
                scored[example] = (values_E[own], first_E[own])
            done += len(batch.examples)
            if on_progress is not None:
                on_progress(done, len(rows))
    return scored


def likeliest(model: LanguageModel, row: Row, count: int) -> list[list[tuple[int, float]]]:
    """For each completion token of a row the `count` most likely tokens in its place, most likely first, with their log-probabilities."""
    found: list[list[tuple[int, float]]] = []
    with torch.inference_mode():
        forest = plant([row])
        hidden_TD = _hidden(model, forest)
        for begin in range(0, len(forest.hidden_N), PLACES):
            places = torch.from_numpy(forest.hidden_N[begin : begin + PLACES]).to(model.device)
            logits_UV = model.logits(hidden_TD[places])
            logprob_UV = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32)).log_softmax(-1)
            value_UK, token_UK = logprob_UV.topk(min(count, logprob_UV.shape[1]))
            found += [list(zip(*pair, strict=True)) for pair in zip(token_UK.tolist(), value_UK.tolist(), strict=True)]
    return found


def _hidden(model: LanguageModel, forest: Forest) -> Tensor:
    """The last hidden states (T, D)."""
    attention = TreeAttention(forest) if model.shares_prefixes else None
    positions = forest.positions_T if forest.axes_3T is None else forest.axes_3T
    return model.hidden(forest.tokens_T, positions, attention, forest.media)


def _targets(model: LanguageModel, forest: Forest) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    hidden_TD = _hidden(model, forest)
    places_U, place_N = np.unique(forest.hidden_N, return_inverse=True)
    place_N = place_N.reshape(-1)
    logprob_N, first_N = np.empty(len(place_N)), np.empty(len(place_N), dtype=np.bool_)
    order_N = np.argsort(place_N, kind="stable")
    for begin in range(0, len(places_U), PLACES):
        chunk_U = places_U[begin : begin + PLACES]
        first, last = np.searchsorted(place_N[order_N], (begin, begin + len(chunk_U)))
        mine_N = order_N[first:last]
        logits_UV = model.logits(hidden_TD[torch.from_numpy(chunk_U).to(model.device)])
        logits_UV = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32))
        place = torch.from_numpy(place_N[mine_N] - begin).to(logits_UV.device)
        token = torch.from_numpy(forest.token_N[mine_N]).to(logits_UV.device)
        picked_N = logits_UV[place, token] - logits_UV.logsumexp(-1)[place]
        logprob_N[mine_N] = picked_N.double().cpu().numpy()
        first_N[mine_N] = (logits_UV.argmax(-1)[place] == token).cpu().numpy()
    return logprob_N, first_N
