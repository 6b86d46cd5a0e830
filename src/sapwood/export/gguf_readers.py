"""GGUF files read back: by llama.cpp where its Python bindings are installed, else by gguf and transformers.

In: a file. Out: log-probabilities as `verify` asks for them, and whether llama.cpp makes the prompt ids of training. Without
llama.cpp its tokenizer and its arithmetic are not tried; what is in the file is: every tensor is dequantized, put in its place in a
transformers model, and computed with.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from sapwood.chat import Chat
from sapwood.errors import ExportError
from sapwood.export.gguf_file import check_model
from sapwood.export.readers import logprobs_of_module
from sapwood.export.verify import LogProbs, Trace


def has_llama_cpp() -> bool:
    """Are llama.cpp's Python bindings installed, with all that they import?"""
    if importlib.util.find_spec("llama_cpp") is None:
        return False
    try:
        importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


class LlamaCpp:
    """A GGUF file in llama.cpp, on the CPU."""

    def __init__(self, path: Path, context: int) -> None:
        """`context` is the longest sequence that will be asked. Raises `ExportError` where llama.cpp refuses the file."""
        self._api: Any = importlib.import_module("llama_cpp")
        try:
            self._llama: Any = self._api.Llama(
                str(path), n_ctx=context, n_batch=min(context, 512), logits_all=True, n_gpu_layers=0, verbose=False, use_mmap=True
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ExportError(f"llama.cpp cannot load {path.name}: {error}") from error
        self.name = f"llama.cpp through llama-cpp-python {self._api.__version__}"

    def logprobs(self, ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """Log-probabilities (count, V) at the places that predict the last `count` ids."""
        self._llama.reset()
        self._llama.eval(list(ids[:-1]))
        logits_NV = np.array(self._llama.scores[: len(ids) - 1][-count:], dtype=np.float64)
        highest_N = logits_NV.max(-1, keepdims=True)
        logits_NV -= highest_N + np.log(np.exp(logits_NV - highest_N).sum(-1, keepdims=True))
        return logits_NV.astype(np.float32)

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt, as llama.cpp's server makes them: a BOS is added where the file says so."""
        return list(map(int, self._llama.tokenize(text.encode("utf-8", "surrogatepass"), add_bos=True, special=True)))

    def stops_at(self, token: int) -> bool:
        """Does llama.cpp end a generation at this id by itself?"""
        return bool(self._api.llama_vocab_is_eog(self._llama._model.vocab, token))

    def close(self) -> None:
        """Free its memory."""
        self._llama.close()


def check_prompts(llama: LlamaCpp, chat: Chat, traces: Sequence[Trace], *, adds_bos: bool) -> int:
    """Does llama.cpp make the very prompt ids of training? How many were compared.

    Prompts that hold control tokens as text are left out, as in `readers`. Raises `ExportError` naming the first difference.
    """
    compared = 0
    for one in traces:
        prompt = one.prompt
        if prompt.media or chat.tokens.shield.count([[message.for_template() for message in prompt.messages], list(prompt.tools)]):
            continue
        text = prompt.text
        bos = chat.special_tokens.get("bos_token", "")
        if adds_bos and bos:
            text = text.removeprefix(bos)  # llama.cpp's server does the same
        found, wanted = llama.tokenize(text), list(prompt.ids)
        if found != wanted:
            pairs = enumerate(zip(found, wanted, strict=False))
            place = next((at for at, (one_id, other) in pairs if one_id != other), min(len(found), len(wanted)))
            raise ExportError(
                f"llama.cpp makes other prompt ids than training used: they differ from token {place} on "
                f"({chat.decode(found[place : place + 6])!r} there, {chat.decode(wanted[place : place + 6])!r} in training). A model would "
                "be asked something else than it learned, so nothing was written."
            )
        compared += 1
    return compared


def read_tensors(path: Path, config: Any) -> LogProbs:
    """Log-probabilities by transformers, of the tensors that stand in the file. Raises `ExportError` where one has no place."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    finally:
        transformers_logging.set_verbosity(verbosity)
    arch = check_model(config)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    places = {names.get_name(name, try_suffixes=(".weight", ".bias")): name for name in module.state_dict()}
    reader, weights = gguf.GGUFReader(path), {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue  # transformers computes these itself
        if tensor.name not in places:
            raise ExportError(f"{path.name} holds a tensor {tensor.name!r} that has no place in the model.")
        name = places[tensor.name]
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if arch == gguf.MODEL_ARCH.LLAMA and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            values = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        weights[name] = values
    missing, unexpected = module.load_state_dict(weights, strict=False)
    lacking = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if lacking or unexpected:
        raise ExportError(f"{path.name} lacks {len(lacking)} tensors of the model, such as {[*lacking, *unexpected][0]}.")
    with suppress(AttributeError):
        module.tie_weights()
    return logprobs_of_module(module.eval())
