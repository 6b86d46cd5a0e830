"""A model that computes on forests.

In: a forest. Out: the log-probability of each of its targets, differentiable. One implementation serves training,
scoring and reinforcement learning. At construction the model is tried on two short rows that share a beginning: a model
whose layers cannot share prefixes is found out there and runs row by row from then on, and says so in `notes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from sapwood.attention import NAME, Attention, TreeAttention, for_text
from sapwood.attention.interface import LayerCall
from sapwood.errors import ModelError
from sapwood.forest import Forest, ForestMedia, cut, plant
from sapwood.model.head import head_logprobs
from sapwood.model.media import embed
from sapwood.model.new_tokens import bare, head_parts
from sapwood.records import Example, Row

MAX_ROUNDING = {torch.bfloat16: 0.5, torch.float16: 0.1}
"""Nats by which rounding may move a log-probability of a random token; a head that is not understood moves it by more."""
MAX_WIDE_ROUNDING = 1e-2
"""The same in fp32 and fp64."""


class LanguageModel:
    """A causal language model of transformers (with or without a peft adapter) that computes on forests."""

    def __init__(self, module: Any, *, probe: bool = True) -> None:
        self.module = module
        self.notes: list[str] = []
        self.shares_prefixes = True
        """False for models with layers that cannot share prefixes: their micro-batches hold one row each."""
        self.new_tokens: tuple[int, ...] = ()
        """Ids whose embeddings train with an adapter, set by `learn_tokens`."""
        self.taken_out: dict[str, Tensor] = {}
        """By name, the start of an adapter that was taken out of the base weights (PiSSA, OLoRA), set by `add_lora`."""
        self._own_head = True
        if probe:
            self._probe()

    @property
    def base(self) -> Any:
        """The transformers model, below an adapter if there is one."""
        return self.module.get_base_model() if hasattr(self.module, "peft_config") else self.module

    @property
    def device(self) -> torch.device:
        """Where the input embeddings live."""
        device: torch.device = bare(self.base.get_input_embeddings()).weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the base weights."""
        dtype: torch.dtype = self.base.dtype
        return dtype

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers (dropout). It then shares no prefixes: a shared token would have one draw for all rows."""
        return any(
            isinstance(drop, nn.Dropout)
            for layer in self.module.modules()
            if isinstance(layer, LoraLayer)
            for drop in layer.lora_dropout.values()
        )

    @property
    def vocabulary(self) -> int:
        """Rows of the output head."""
        return int(bare(self.base.get_output_embeddings()).weight.shape[0])

    def placed(self, values: NDArray[np.int64] | Tensor) -> Tensor:
        """Numbers on the model's device, where tensors are already. The copy waits for nothing that is under way there: pages are staged
        before it returns."""
        return values if isinstance(values, Tensor) else torch.from_numpy(values).to(self.device, non_blocking=True)

    def hidden(
        self,
        tokens_T: NDArray[np.int64] | Tensor,
        positions_T: NDArray[np.int64] | Tensor,
        attention: Attention | None,
        media: Sequence[ForestMedia] = (),
    ) -> Tensor:
        """Last hidden states (T, D) of one flat row; `attention` is what the keyword `forest` carries. Tensors on the model's device are
        taken as they are.

        `positions_T` may be (3, T), for models that count in time, height and width. `media` stands at its places in the row.
        """
        extra: dict[str, Any] = {} if attention is None else {"forest": attention}
        if media:
            extra |= embed(self.base, np.asarray(tokens_T), media)
        else:
            extra["input_ids"] = self.placed(tokens_T)[None]
        positions = self.placed(positions_T)
        out = self.base.get_decoder()(position_ids=positions[None] if positions.ndim == 1 else positions[:, None], use_cache=False, **extra)
        states: Tensor = out.last_hidden_state[0]
        return states

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits (N, V) of hidden states, with whatever scaling or capping the model does."""
        logits: Tensor = self.base.get_output_embeddings()(hidden_ND)
        if self._own_head:
            return logits
        return _capped(logits, self.base.config)

    def target_logprobs(self, forest: Forest, *, temperature: float = 1.0) -> Tensor:
        """Log-probability (N,), fp32 or wider, of each target of the forest, at a sampling temperature. Differentiable."""
        if not self.shares_prefixes and len(forest.nodes_M) > 1:
            raise ModelError("This model runs row by row: give it forests of one row.")
        attention = TreeAttention(forest) if self.shares_prefixes else None
        positions = forest.positions_T if forest.axes_3T is None else forest.axes_3T
        hidden_TD = self.hidden(forest.tokens_T, positions, attention, forest.media)
        places, place_N = np.unique(forest.hidden_N, return_inverse=True)
        hidden_UD = hidden_TD[self.placed(places)]
        place = torch.from_numpy(place_N.reshape(-1))
        token = self.placed(forest.token_N)
        parts = head_parts(self.base.get_output_embeddings()) if self._own_head else None
        if parts is not None and (temperature == 1 or parts[0].bias is None):
            head, index_K, rows_KD = parts
            if temperature != 1:  # logits are linear in the states; in fp32 no rounding is added where the quotient is exact
                hidden_UD = hidden_UD / temperature
            return head_logprobs(hidden_UD, head, place, token, index_K, rows_KD)
        logits = self.logits(hidden_UD) / temperature
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[place.to(self.device), token]

    def logprobs(self, rows: Sequence[Row], *, budget: int = 4096) -> list[NDArray[np.float64]]:
        """The `LogProber` protocol: log-probability of each completion token of each row."""
        result: list[NDArray[np.float64]] = [np.empty(0)] * len(rows)
        budget = budget if self.shares_prefixes else 0
        with torch.inference_mode():
            for batch in cut([Example((row,)) for row in rows], budget):
                forest = batch.forest
                values_E = self.target_logprobs(forest).double().cpu().numpy()[forest.target_E]
                for index, example in enumerate(batch.examples):
                    result[example] = values_E[forest.row_E == index]
        return result

    def _probe(self) -> None:
        """Does the head hold the whole way to the logits, and does a forest give what one row at a time gives?

        The second question needs a yardstick that knows nothing of types and sizes: the same forest with a wrong mask, in
        which the second row sees the first one's end. A forest that is right differs from one row at a time by rounding,
        far less than the wrong one; a model with layers that cannot share differs by about as much.
        """
        kind = type(self.base).__name__
        rows = _probe_rows(self.vocabulary)
        forest = plant(rows, min_saving=1)
        whole = np.array([[0, forest.num_tokens, -1]])
        wrong = dataclasses.replace(forest, nodes_M=whole, subtree_end_M=whole[:, 1])
        stock = "sdpa" if getattr(self.base, "_supports_sdpa", False) else "eager"
        self.module.set_attn_implementation(for_text(self.base.config, stock))
        with torch.inference_mode():
            expected = np.concatenate([self._reference_logprobs(row) for row in rows])
            self.shares_prefixes = False
            self._choose_head(rows, expected)
            if _rotary_by_length(self.base.config):
                self.notes.append(
                    f"{kind} turns its positions by the longest row in a pass: it runs row by row, which is exact but saves nothing."
                )
                return
            self.module.set_attn_implementation(for_text(self.base.config, NAME))
            self.shares_prefixes = True
            try:
                if not self._attends_in_every_layer(forest):
                    raise ModelError("some layers mix tokens by other means than attention")
                right, contaminated = (float(np.abs(self._uses(tree) - expected).max()) for tree in (forest, wrong))
                if right < 0.2 * contaminated:
                    return
            except (ModelError, TypeError):
                pass
        self.shares_prefixes = False
        self.module.set_attn_implementation(for_text(self.base.config, stock))
        self.notes.append(f"{kind} has layers that cannot share prefixes: it runs row by row, which is exact but saves nothing.")

    def _choose_head(self, rows: list[Row], expected: NDArray[np.float64]) -> None:
        """The chunked head unless the config scales or caps: which of two equal paths rounds less says nothing."""
        self._own_head = not any(_capping(self.base.config))
        found = np.concatenate([self._uses(plant([row])) for row in rows])
        difference = float(np.abs(found - expected).max())
        if difference > MAX_ROUNDING.get(self.dtype, MAX_WIDE_ROUNDING):
            raise ModelError(
                f"{type(self.base).__name__}: its own logits and those Sapwood computes from its hidden states differ by "
                f"{difference:.3g} nats. This family is not supported yet; choose another model."
            )

    def _attends_in_every_layer(self, forest: Forest) -> bool:
        """State-space, linear-attention and convolution layers pass the forest by, however little they mix at random weights."""
        counted = _Counted(TreeAttention(forest))
        self.hidden(forest.tokens_T, forest.positions_T, counted)
        return counted.calls >= int(self.base.config.get_text_config().num_hidden_layers)

    def _uses(self, forest: Forest) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.target_logprobs(forest).double().cpu().numpy()[forest.target_E]
        return values

    def _reference_logprobs(self, row: Row) -> NDArray[np.float64]:
        """One row through the model's own forward, with transformers' own attention."""
        logits = self.base(input_ids=torch.from_numpy(row.inputs_T).to(self.device)[None], use_cache=False).logits[0]
        begin = len(row.prompt_T) - 1
        logprob = logits[begin:].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        picked = logprob[torch.arange(len(row.completion_T), device=logprob.device), self.placed(row.completion_T)]
        values: NDArray[np.float64] = picked.double().cpu().numpy()
        return values


def _probe_rows(vocabulary: int) -> list[Row]:
    """Two rows of ten tokens that share six, without special meaning."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, 14)
    first, second = tokens[:10], np.concatenate([tokens[:6], tokens[10:]])
    return [Row(ids[:4], ids[4:], np.ones(6, np.float32)) for ids in (first, second)]


class _Counted:
    """Attention that counts the layers that ask for it."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self.calls = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Tensor:
        self.calls += 1
        return self.attention.attend(query, key, value, call)


def _rotary_by_length(config: Any) -> bool:
    """Do the angles of all rows of a pass depend on its longest one? Rows of other lengths must then not stand beside it."""
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [found, *(part for part in found.values() if isinstance(part, dict))]
    return any(part.get("rope_type") in ("dynamic", "longrope") for part in kinds)


def _capping(config: Any) -> tuple[float | None, float | None, float | None]:
    """Factor, divisor and soft cap of the logits, where the config names one that does something."""
    text = config.get_text_config()
    factor, divisor = (getattr(text, name, None) for name in ("logit_scale", "logits_scaling"))
    cap = getattr(text, "final_logit_softcapping", None)
    return None if factor == 1 else factor, None if divisor == 1 else divisor, cap


def _capped(logits: Tensor, config: Any) -> Tensor:
    """Soft-capped logits (Gemma 2, arXiv:2408.00118 §2) and the scalings of Cohere and Granite."""
    factor, divisor, cap = _capping(config)
    if factor is not None:
        logits = logits * factor
    if divisor is not None:
        logits = logits / divisor
    return logits if cap is None else cap * torch.tanh(logits / cap)
