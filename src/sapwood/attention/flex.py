"""Ancestor attention on a GPU: one compiled kernel over the flat row, masked by one number a key.

Tokens lie depth first, so the tokens that see key k are one slice: query q sees k exactly where

    k <= q < end[k],    end[k] = place behind the last token in the subtree of k's node.

`torch.nn.attention.flex_attention` (Dong et al., arXiv:2412.05496) makes one kernel of this test and of attention, there and back.
It walks blocks of 128 × 128 and must be told which are empty, full or in between. That is read off the least and the largest `end` and
depth of each block, (T/128)² comparisons, never off the T² pairs. Windows compare depths, soft caps change scores, and a sink takes its
share afterwards by the log-sum-exp: out · sigmoid(lse - sink).

In: queries, keys and values of the flat row, padded here to whole blocks; a padded token sees itself alone. The number of blocks is the
one length that the compiled kernel knows, and it is symbolic, so one compilation serves every forest; there is no set of lengths
to pad to. The row holds two blocks at least: torch compiles sizes of 1 anew, and short queries by another kernel.

Compiled on CUDA alone and on first use; before it serves, it is tried on a small forest against the dense mask, there and back, and where
it fails to compile or disagrees the plain path serves and `why_not` holds the reason. On a CPU it runs uncompiled, for tests.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.attention.dense import dense_attention
from sapwood.attention.interface import LayerCall
from sapwood.forest import Forest, plant
from sapwood.kernels import on_gpu
from sapwood.records import Row

BLOCK = 128
LEAST_BLOCKS = 2
TYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What the kernel computes in; fp64 takes the plain path."""
MAX_ERROR = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 4e-3}
"""Norm of the error against the dense mask in fp32, as a share: rounding, and products of fp32 in TF32 where the user allows them."""

_refusals: dict[tuple[Any, ...], str] = {}
"""By form, why the kernel does not serve it; empty where it does."""


def padded_length(length: int) -> int:
    """Whole blocks, and at least two."""
    return BLOCK * max(LEAST_BLOCKS, -(-length // BLOCK))


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """The mask of one forest under one window, on one device. n blocks; T is the padded length."""

    end_T: Tensor
    """Place behind the last token that sees this one."""
    depth_T: Tensor | None
    """Depth of each token; None without a window."""
    reach_T: Tensor | None
    """The first depth from which a token is out of the window."""
    tables: tuple[Tensor, ...]
    """For queries, then for keys: count and order of the blocks that are partly seen, count and order of the full ones; (1, 1, n[, n])."""

    def to(self, device: torch.device) -> Blocks:
        depth_T, reach_T = (None if row is None else row.to(device, non_blocking=True) for row in (self.depth_T, self.reach_T))
        return Blocks(
            self.end_T.to(device, non_blocking=True), depth_T, reach_T, tuple(table.to(device, non_blocking=True) for table in self.tables)
        )


def blocks_of(forest: Forest, window: int | None = None) -> Blocks:
    """Read the mask off the node table, on the CPU. Without a window every block is classed exactly; with one, some empty as partial."""
    length, padded = forest.num_tokens, padded_length(forest.num_tokens)
    lengths = forest.nodes_M[:, 1] - forest.nodes_M[:, 0]
    end_T = np.arange(1, padded + 1)
    end_T[:length] = np.repeat(forest.subtree_end_M, lengths)
    depth_T = np.zeros(padded, np.int64)
    depth_T[:length] = forest.positions_T

    first_n = np.arange(0, padded, BLOCK)
    ends, depths = end_T.reshape(-1, BLOCK), depth_T.reshape(-1, BLOCK)
    above = first_n[None, :] < first_n[:, None]  # (queries, keys): every key stands in front of every query
    full = above & (first_n[:, None] + BLOCK <= ends.min(1)[None, :])
    some = (above & (first_n[:, None] < ends.max(1)[None, :])) | np.eye(len(first_n), dtype=bool)
    if window is not None:
        full &= depths.max(1)[:, None] - depths.min(1)[None, :] < window
        some &= depths.min(1)[:, None] - depths.max(1)[None, :] < window
    tables = [table for side in (some & ~full, full, (some & ~full).T, full.T) for table in _listed(side)]
    end, depth, reach = (torch.from_numpy(values.astype(np.int32)) for values in (end_T, depth_T, depth_T + (window or 0)))
    return Blocks(end, depth if window is not None else None, reach if window is not None else None, tuple(tables))


def _listed(chosen: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    """(n, n) booleans → how many are chosen in each line, (1, 1, n), and their columns in front of the others, (1, 1, n, n)."""
    order = np.argsort(~chosen, axis=1, kind="stable")
    return tuple(torch.from_numpy(table.astype(np.int32))[None, None] for table in (chosen.sum(1), order))  # type: ignore[return-value]


def flex_attention(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, call: LayerCall) -> Tensor:
    """(1, H, T, K), keys and values with their own number of heads and `blocks` on the same device → (1, H, T, K of the values).

    The window is that of `blocks`. Compiled on CUDA, uncompiled elsewhere (torch refuses gradients there: its tests lift that).
    """
    length = query.shape[2]
    more = len(blocks.end_T) - length
    states = [_laid_out(part, more) for part in (query, key, value)]
    attend = _compiled_attend if query.device.type == "cuda" else _plainly
    constants = (call.scale, call.softcap, call.sinks_H is not None)
    out, lse = attend(*states, blocks.end_T, blocks.depth_T, blocks.reach_T, blocks.tables, *constants)
    if call.sinks_H is not None:
        out = out * torch.sigmoid(lse - call.sinks_H.to(lse.dtype)[None, :, None])[..., None].to(out.dtype)
    return out[:, :, :length]


def _laid_out(states: Tensor, more: int) -> Tensor:
    """(1, H, T, K) with `more` tokens of zeros behind it; in memory always (1, T, H, K), so that strides do not ask for another form."""
    tokens_first = states.transpose(1, 2)
    return (F.pad(tokens_first, (0, 0, 0, 0, 0, more)) if more else tokens_first.contiguous()).transpose(1, 2)


def _plainly(*given: Any) -> tuple[Tensor, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uncompiled is what is wanted
        return _attend(*given)


def _compiled_attend(*given: Any) -> tuple[Tensor, Any]:
    """`_attend`, compiled: the lengths of its tensors are what varies."""
    *states, end_T, depth_T, reach_T, tables = given[:7]
    lengths = [*((part, [2]) for part in states), *((row, [0]) for row in (end_T, depth_T, reach_T))]
    lengths += [(table, list(range(2, table.ndim))) for table in tables]
    found: tuple[Tensor, Any] = on_gpu.call(_attend, lengths, *given)
    return found


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    end_T: Tensor,
    depth_T: Tensor | None,
    reach_T: Tensor | None,
    tables: tuple[Tensor, ...],
    scale: float,
    softcap: float | None,
    wants_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """What is compiled: tensors vary, the last three are constants of the compiled form."""
    from torch.nn.attention import flex_attention as flex

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) & (q < end_T[k])
        return seen if depth_T is None or reach_T is None else seen & (depth_T[q] < reach_T[k])

    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    length = BLOCK * tables[0].shape[2]
    for part in (query, key, value):  # whole blocks, as the compiler can see now: it leaves out the tests of a ragged end
        torch._check(part.shape[2] == length)  # type: ignore[no-untyped-call]
    mask_of: Any = flex.BlockMask
    mask = mask_of((length, length), *tables, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=visible)
    wanted: dict[str, Any] = {}
    if wants_lse:
        request = getattr(flex, "AuxRequest", None)  # torch 2.9 on
        wanted = {"return_lse": True} if request is None else {"return_aux": request(lse=True)}
    score_mod = None if softcap is None else capped
    found: Any = flex.flex_attention(query, key, value, score_mod, mask, scale, enable_gqa=True, **wanted)
    if not wants_lse:
        return found, None
    out, aux = found
    return out, getattr(aux, "lse", aux)


def flex_serves(query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> bool:
    """May the kernel compute this call? On CUDA each form (types, heads, widths, what the layer asks for) is tried once a process."""
    if query.device.type != "cuda" or query.dtype not in TYPES:
        return False
    asked = (call.scale, call.window is not None, call.softcap, call.sinks_H is not None)
    form = (query.device, query.dtype, *(part.shape[1::2] for part in (query, key, value)), *asked)
    if form not in _refusals:
        _refusals[form] = _refusal(query, key, value, call)
    return not _refusals[form]


def why_not() -> str:
    """Why the kernel was left out for some form in this process; empty where it was not."""
    return next((words for words in _refusals.values() if words), "")


def _refusal(query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> str:
    """Compile for such queries, keys and values and try: empty where outputs and gradients are those of the dense mask."""
    forest = _trial_forest()
    window = None if call.window is None else 40
    sinks = None if call.sinks_H is None else call.sinks_H.detach().clone()
    # hooks of an activation checkpoint around this call would take the trial's way back for their own
    own = torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept)
    with torch.inference_mode(False), torch.enable_grad(), own:
        trial = replace(call, window=window, sinks_H=sinks)
        generator = torch.Generator("cpu").manual_seed(0)
        shapes = [(1, forest.num_tokens, part.shape[1], part.shape[3]) for part in (query, key, value)]
        drawn = [torch.randn(shape, generator=generator, device="cpu").to(query.device, query.dtype) for shape in shapes]
        states = [part.transpose(1, 2).requires_grad_() for part in drawn]
        grad = torch.randn(1, query.shape[1], forest.num_tokens, value.shape[3], generator=generator, device="cpu").to(query)
        wide = [part.detach().float().requires_grad_() for part in states]
        expected = dense_attention(wide[0], wide[1], wide[2], forest, trial)
        truth = (expected, *torch.autograd.grad(expected, wide, grad.float()))
        try:
            out = flex_attention(states[0], states[1], states[2], blocks_of(forest, window).to(query.device), trial)
            found = (out, *torch.autograd.grad(out, states, grad))
        except Exception as error:  # noqa: BLE001 - whatever a compiler, its helpers or a driver raise, the plain path serves
            return on_gpu.failure(error)
        errors = [
            float((one.detach().float() - other.detach()).norm() / other.detach().norm()) for one, other in zip(found, truth, strict=True)
        ]
    worst = max(errors)
    return "" if worst <= MAX_ERROR[query.dtype] else f"it differs from the dense mask by {worst:.2g} of its size"


@cache
def _trial_forest() -> Forest:
    """Some 370 tokens, so that blocks of all three kinds are met: four rows behind 200 shared tokens, two of which share more."""
    rng = np.random.default_rng(0)
    root, branch = rng.integers(0, 1000, 200), rng.integers(0, 1000, 40)
    tails = [rng.integers(0, 1000, 30) for _ in range(4)]
    rows = [np.concatenate([root, *([branch] if number < 2 else []), tail]) for number, tail in enumerate(tails)]
    return plant([Row(tokens[:190], tokens[190:], np.ones(len(tokens) - 190, np.float32)) for tokens in rows], min_saving=1)
