"""llama.cpp through its own C interface, with a sequence (a slot) for each request, as its server batches them.

load      a GGUF file, and a context with room for all requests
generate  all prompts at once, greedy, exactly `new` tokens each; seconds to everyone's first token, and to the end
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as llama
import numpy as np

from bench.contestant import Request, serve, versions_of

_now: list[Any] = []
BATCH = 2048
"""Tokens that are handed over at a time; llama.cpp cuts them into micro-batches of 512, its default."""


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(_: int, __: bytes, ___: Any) -> None:
    """Its log."""


def load(request: Request) -> dict[str, Any]:
    """The model is mapped, as is the default."""
    llama.llama_log_set(_silent, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(request["gguf"].encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_seq_max = request["context"], BATCH, request["requests"]
    params.n_threads = params.n_threads_batch = request["threads"] or 2
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama.cpp made no context")
    _now[:] = [model, context, llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))]
    return {"threads": params.n_threads, "dtype": "as the file is"}


def generate(request: Request) -> dict[str, Any]:
    """Prefill in batches, then a batch a step with one token of each sequence."""
    _, context, vocabulary = _now
    prompts, new = request["prompts"], request["new"]
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    batch = llama.llama_batch_init(BATCH, 0, 1)
    tokens: list[list[int]] = [[] for _ in prompts]
    soonest = 0.0
    begin = time.perf_counter()

    def compute(entries: list[tuple[int, int, int, bool]]) -> None:
        for place, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
        batch.n_tokens = len(entries)
        if llama.llama_decode(context, batch):
            raise RuntimeError("llama.cpp could not decode a batch")
        for place, (_, _, sequence, wanted) in enumerate(entries):
            if wanted:
                logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, place), shape=(vocabulary,))
                tokens[sequence].append(int(logits.argmax()))

    entries = [
        (token, position, sequence, position == len(ids) - 1) for sequence, ids in enumerate(prompts) for position, token in enumerate(ids)
    ]
    for start in range(0, len(entries), BATCH):
        compute(entries[start : start + BATCH])
        soonest = soonest or (time.perf_counter() - begin if any(tokens) else 0.0)
    first = time.perf_counter() - begin
    for step in range(new - 1):
        compute([(one[-1], len(ids) + step, sequence, True) for sequence, (ids, one) in enumerate(zip(prompts, tokens, strict=True))])
    seconds = time.perf_counter() - begin
    llama.llama_batch_free(batch)
    return {"soonest": soonest, "first": first, "seconds": seconds, "tokens": tokens}


if __name__ == "__main__":
    serve({"load": load, "generate": generate}, versions_of(["llama_cpp_python"]))
