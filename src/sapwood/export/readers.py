"""Exports read back by the programs of others: plain transformers, plain peft.

In: a folder. Out: log-probabilities as `verify` asks for them, prompt ids, greedy answers. Nothing of Sapwood's own computes
here: that is the point.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from sapwood.chat import Chat
from sapwood.errors import ExportError
from sapwood.export.verify import LogProbs, Trace, as_logprobs
from sapwood.model.media import FAMILIES


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def read_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A model folder through transformers alone, with its own attention: weights rounded to `dtype`, computing in fp32.

    Raises `ExportError`.
    """
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            family = FAMILIES.get(config.model_type)
            kind: Any = transformers.AutoModelForCausalLM if family is None else getattr(transformers, family.model)
            model, report = kind.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ExportError(f"{folder}: transformers could not load this export: {' '.join(str(error).split())[:500]}") from error
    lacking = {name: found for name, found in report.items() if found}
    if lacking:
        raise ExportError(f"{folder}: transformers did not find every weight in its place: {str(lacking)[:500]}")
    return model.float().eval()


def read_adapter(base: Any, folder: Path, rows: int) -> Any:
    """An adapter folder through peft alone, on a plain transformers model in fp32 whose embedding is given `rows` rows first.

    Raises `ExportError`.
    """
    try:
        with _quiet():
            if len(base.get_input_embeddings().weight) != rows:
                base.resize_token_embeddings(rows, mean_resizing=False)
            return peft.PeftModel.from_pretrained(base, str(folder)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ExportError(f"{folder}: peft could not load this export: {' '.join(str(error).split())[:500]}") from error


def logprobs_of_module(module: Any) -> LogProbs:
    """Log-probabilities by the module's own forward."""

    def compute(ids: Sequence[int], count: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = module(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        return as_logprobs(logits[-count:])

    return compute


def reader_name(*packages: str) -> str:
    """Names and versions of what read an export."""
    return " and ".join(f"{package} {version(package)}" for package in packages)


def check_prompts(folder: Path, chat: Chat, traces: Sequence[Trace]) -> int:
    """Does transformers' tokenizer, loaded from the folder, make the very prompt ids of training? How many were compared.

    Prompts whose text holds control tokens are left out: elsewhere such text becomes control tokens, in Sapwood it stays text.
    So are those with media. Raises `ExportError` naming the first difference.
    """
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ExportError(f"{folder}: transformers could not load this tokenizer: {' '.join(str(error).split())[:300]}") from error
    compared = 0
    for one in traces:
        prompt = one.prompt
        if prompt.media or chat.tokens.shield.count([[message.for_template() for message in prompt.messages], list(prompt.tools)]):
            continue
        try:
            found = tokenizer.apply_chat_template(
                chat.written(prompt.messages),
                tools=[dict(tool) for tool in prompt.tools] or None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **prompt.template_arguments,
            )
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExportError(f"{folder}: transformers could not render a prompt of the run: {error}") from error
        _same_ids(list(found), list(prompt.ids), tokenizer, folder)
        compared += 1
    return compared


def _same_ids(found: list[int], wanted: list[int], tokenizer: Any, folder: Path) -> None:
    if found == wanted:
        return
    place = next((at for at, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other), min(len(found), len(wanted)))
    raise ExportError(
        f"{folder}: transformers makes other prompt ids than training used: they differ from token {place} on "
        f"({tokenizer.decode(found[place : place + 6])!r} there, {tokenizer.decode(wanted[place : place + 6])!r} in training). A model "
        "would be asked something else than it learned, so nothing was written."
    )


def check_generation(module: Any, chat: Chat, traces: Sequence[Trace], folder: Path) -> None:
    """transformers' own `generate`, by the folder's generation_config.json alone, must stop where the trained model stops.

    The stop tokens are compared, and the shortest answer that ended by itself is generated. Raises `ExportError`.
    """
    stops = module.generation_config.eos_token_id
    known = set(stops if isinstance(stops, list) else [stops])
    if known != set(chat.stop_ids):
        raise ExportError(
            f"{folder}: generation_config.json stops at the ids {sorted(map(str, known))}, where the trained model stops at "
            f"{sorted(map(str, chat.stop_ids))}. A server would run on or stop short, so nothing was written."
        )
    ended = [one for one in traces if one.answer_N[-1] in known]
    if not ended:
        return
    one = min(ended, key=lambda trace: len(trace.ids))
    with _quiet(), torch.inference_mode():
        ids_T = torch.tensor([one.prompt.ids])
        pad = module.generation_config.pad_token_id
        out = module.generate(
            ids_T,
            attention_mask=torch.ones_like(ids_T),
            do_sample=False,
            max_new_tokens=len(one.answer_N) + 4,
            pad_token_id=one.answer_N[-1] if pad is None else pad,
        )
    length = out.shape[1] - len(one.prompt.ids)
    if length > len(one.answer_N):
        raise ExportError(
            f"{folder}: transformers' generate wrote {length} tokens where the trained model stopped after {len(one.answer_N)} (at id "
            f"{one.answer_N[-1]}), so nothing was written."
        )
