"""TRL's preparation of a file of conversations: `load_dataset("json")`, then SFTTrainer's own `_prepare_dataset`.

The trainer is built for real, around a random model of a few thousand weights, and its own preparation is what the clock
is around; nothing of it is written again here. `max_length=None` spares it one pass over the rows and keeps it from cutting
them, which is the same work as Sapwood's. Everything else is TRL's default, but for the number of processes, which is asked for.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from datasets import load_dataset  # type: ignore[import-not-found]
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bench.contestant import Request, serve, versions_of

_ids: list[Any] = []
"""The `input_ids` column of the last preparation."""


class _TimedTrainer(SFTTrainer):
    prepare_seconds = 0.0

    def _prepare_dataset(self, *given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        done = super()._prepare_dataset(*given, **named)
        self.prepare_seconds += time.perf_counter() - begin
        return done


def prepare(request: Request) -> dict[str, Any]:
    """Read, render and tokenise `file` with the tokenizer in `model`; what is cached goes to `cache`.

    `processes`, if given, is `dataset_num_proc`.
    """
    _ids.clear()
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
    begin = time.perf_counter()
    dataset = load_dataset("json", data_files=request["file"], split="train", cache_dir=request["cache"])
    read_seconds = time.perf_counter() - begin
    arguments = SFTConfig(
        output_dir=str(Path(request["cache"]) / "out"),
        max_length=None,
        dataset_num_proc=request.get("processes"),
        use_cpu=True,
        report_to=[],
    )
    trainer = _TimedTrainer(model=_tiny(len(tokenizer)), args=arguments, train_dataset=dataset, processing_class=tokenizer)
    column = trainer.train_dataset.data.column("input_ids")
    _ids.append(column)
    return {
        "seconds": read_seconds + trainer.prepare_seconds,
        "read_seconds": read_seconds,
        "prepare_seconds": trainer.prepare_seconds,
        "rows": len(trainer.train_dataset),
    }


def dump(request: Request) -> dict[str, Any]:
    """Write the ids of the last preparation: one flat array, and the number of tokens of each conversation."""
    parts = [chunk.combine_chunks() if hasattr(chunk, "combine_chunks") else chunk for chunk in _ids[0].chunks]
    np.save(request["ids"], np.concatenate([part.flatten().to_numpy(zero_copy_only=False) for part in parts]).astype(np.int32))
    np.save(request["lengths"], np.concatenate([np.diff(part.offsets.to_numpy()) for part in parts]).astype(np.int64))
    return {}


def _tiny(vocabulary: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


if __name__ == "__main__":
    serve({"prepare": prepare, "dump": dump}, versions_of(["trl", "transformers", "tokenizers", "datasets", "pyarrow", "torch"]))
