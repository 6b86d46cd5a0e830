"""transformers' `generate`, asked for timed generations.

load      the model in a type, with an attention
generate  all prompts in batches of `batch`, `samples` answers of exactly `new` tokens each; the seconds that first tokens took, and all
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria

from bench.contestant import Request, serve, versions_of

_now: list[Any] = []


def load(request: Request) -> dict[str, Any]:
    """With one of transformers' own attentions."""
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[request["dtype"]]
    _now[:] = [AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype, attn_implementation=request["attention"]).eval()]
    return {"dtype": request["dtype"], "threads": torch.get_num_threads(), "attention": _now[0].config._attn_implementation}


class _Clock(StoppingCriteria):
    """Stops nothing; remembers when the first token was there."""

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.first = self.first or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generate(request: Request) -> dict[str, Any]:
    """All prompts are of one length, so nothing is padded."""
    [model] = _now
    prompts, samples, new = torch.tensor(request["prompts"]), request["samples"], request["new"]
    size = max(1, request["batch"] // samples)
    tokens: list[list[int]] = []
    first = 0.0
    begin = time.perf_counter()
    for start in range(0, len(prompts), size):
        clock, ids = _Clock(), prompts[start : start + size]
        before = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=samples > 1,
                num_return_sequences=samples,
                stopping_criteria=[clock],
                pad_token_id=0,
            )
        assert clock.first is not None
        first += clock.first - before
        tokens += out[:, ids.shape[1] :].tolist()
    seconds = time.perf_counter() - begin
    assert all(len(one) == new for one in tokens), "all answers are of one length"
    return {"soonest": first, "first": first, "seconds": seconds, "tokens": tokens}


if __name__ == "__main__":
    serve({"load": load, "generate": generate}, versions_of(["torch", "transformers"]))
