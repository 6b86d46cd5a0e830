"""The model that lm-eval's harness talks to: its requests on Sapwood's forest scorer and engine.

In: a `LanguageModel` and its `Chat`. Out: an lm-eval `LM`. Texts become ids as lm-eval's own backend makes them (context and
continuation together, cut behind the context), except that a prompt which `chat` rendered keeps the very ids of `chat`: a chat
benchmark asks what inference sends.

What lm-eval has no word for is kept here: requests that failed (`failures`), and those that did not fit the context (`cut`).
Left out on purpose: several processes, encoder-decoder models, soft prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sapwood.chat import Chat
from sapwood.errors import ConfigError
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.model.scoring import Scored, score_rows
from sapwood.records import Completion, Ended, Message, Prompt, Row, Sampler, SamplingParams

LONGEST = 2048
"""Context of a model whose files name none, as in lm-eval."""

OnProgress = Callable[[str, int, int], None]
"""(what is done, how many, of how many)"""

_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
_SAID_ELSEWHERE = {"do_sample", "until", "max_gen_toks"}


class ForestLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """An lm-eval model. `batch_size` of the harness has no meaning here: micro-batches are cut by unique tokens."""

    def __init__(
        self, model: LanguageModel, chat: Chat, *, engine: Sampler | None = None, budget: int = 8192, on_progress: OnProgress | None = None
    ) -> None:
        super().__init__()
        self.model, self.chat, self.budget, self.on_progress = model, chat, budget, on_progress
        self.engine = engine or Engine(model, chat)
        self.context = chat.context_length or LONGEST
        self.failures: dict[tuple[str, int], str] = {}
        """(task, document) → why nothing could be generated for it."""
        self.cut: dict[tuple[str, int], int] = {}
        """(task, document) → tokens at the beginning that did not fit, and were left out as lm-eval does."""
        self._rendered: dict[str, Prompt] = {}

    @property
    def eot_token_id(self) -> int:
        """The model's own end, which lm-eval stops at and puts before an empty context."""
        end = self.chat.tokens.id_of(self.chat.special_tokens.get("eos_token", ""))
        assert end is not None or self.chat.stop_ids, "a model has a token to stop at"
        return end if end is not None else min(self.chat.stop_ids)

    @property
    def prefix_token_id(self) -> int:
        begin = self.chat.tokens.id_of(self.chat.special_tokens.get("bos_token", ""))
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        return str(self.chat.folder)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.chat.template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt as text; its ids are kept, so that a control token in a question stays a text. A last turn is continued."""
        *before, last = chat_history
        prefill = "" if add_generation_prompt else last["content"]
        turns = chat_history if add_generation_prompt else before
        prompt = self.chat.prompt([Message(turn["role"], turn["content"]) for turn in turns], where="a benchmark's prompt")
        if not prefill:
            self._rendered[prompt.text] = prompt
        return prompt.text + prefill

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; the tokenizer's own beginning is put before it unless it stands there or is not wanted."""
        rendered = self._rendered.get(string)
        if rendered is not None:
            return list(rendered.ids)
        tokens = self.chat.tokens
        begins = tokens.token_of(tokens.beginning[0]) if tokens.beginning else None
        wanted = add_special_tokens if add_special_tokens is not None else not (begins and string.startswith(begins))
        return [*(tokens.beginning if wanted else ()), *tokens.encode(string)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        rows = [self._row(context, continuation) for _, context, continuation in requests]
        progress = partial(self.on_progress, "options scored") if self.on_progress is not None else None
        answers = [(float(values.sum()), bool(first.all())) for values, first in self._scored(rows, progress)]
        for (request, _, _), answer in zip(requests, answers, strict=True):
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, answer)
        return answers

    def _scored(self, rows: Sequence[Row], on_progress: Callable[[int, int], Any] | None = None) -> list[Scored]:
        """Each distinct row once: tasks ask for the same option more than once."""
        keys = [(row.prompt_T.tobytes(), row.completion_T.tobytes()) for row in rows]
        distinct = dict(zip(reversed(keys), reversed(rows), strict=True))
        values = dict(
            zip(distinct, score_rows(self.model, list(distinct.values()), budget=self.budget, on_progress=on_progress), strict=True)
        )
        return [values[key] for key in keys]

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> Row:
        """The last tokens that fit, as in lm-eval; an option alone longer than the context cannot be scored."""
        if not continuation:
            raise ConfigError("An option of a benchmark is empty, so nothing can be scored. Mend the task's doc_to_choice.")
        room = self.context + 1 - len(continuation)
        if room < 1:
            raise ConfigError(f"An option has {len(continuation)} tokens and the model's context {self.context}. Leave the task out.")
        ids = list(context)[-room:]
        return Row(np.asarray(ids, dtype=np.int64), np.asarray(continuation, dtype=np.int64), np.ones(len(continuation), dtype=np.float32))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each continuation. What had to be cut at the left is counted in `cut`."""
        for request in requests:
            context, continuation = request.args
            if len(context) + len(continuation) > self.context:  # a token is at least one letter: only then count
                tokens = len(self.tok_encode(context + continuation))
                self._note_cut(request, tokens - self.context - 1)
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the context, each with as much before it as fits."""
        rows: list[Row] = []
        owner: list[int] = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.context, context_len=1)
            for window in map(make_disjoint_window, windows):
                rows.append(self._row(*window))
                owner.append(index)
        totals = np.zeros(len(requests))
        for index, (values, _) in zip(owner, self._scored(rows), strict=True):
            totals[index] += values.sum()
        return [float(total) for total in totals]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, with requests of equal settings together. One that failed is "" here and has its reason in `failures`."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        answers = [""] * len(requests)
        done = 0
        for places in groups.values():
            params, until = self._params(requests[places[0]].args[1])
            prompts = [self._prompt(requests[place], params.max_new_tokens) for place in places]
            for begin in range(0, len(places), 64):
                part = places[begin : begin + 64]
                for place, completion in zip(part, self.engine.generate(prompts[begin : begin + 64], params), strict=True):
                    answers[place] = self._text(requests[place], completion, until)
                done += len(part)
                if self.on_progress is not None:
                    self.on_progress("answers written", done, len(requests))
        return answers

    def _params(self, given: dict[str, Any]) -> tuple[SamplingParams, list[str]]:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, 256))
        unknown = kwargs.keys() - _SAMPLING - _SAID_ELSEWHERE
        if unknown:
            known = ", ".join(sorted(_SAMPLING | {"until", "max_gen_toks", "do_sample"}))
            raise ConfigError(f"A benchmark's generation_kwargs hold {', '.join(sorted(unknown))}; known here: {known}.")
        until = handle_stop_sequences(kwargs.get("until"), eos=self.chat.decode([self.eot_token_id]))
        sampling = {name: kwargs[name] for name in _SAMPLING & kwargs.keys()}
        sampling["temperature"] = float(sampling.get("temperature", 0.0)) if kwargs.get("do_sample") else 0.0
        stops = tuple(stop for stop in until if stop)
        return SamplingParams(max_new_tokens=kwargs["max_gen_toks"], stop=stops, **sampling), until

    def _prompt(self, request: Instance, room: int) -> Prompt:
        text = request.args[0]
        rendered = self._rendered.get(text)
        ids = self.tok_encode(text)
        longest = self.context - room
        if longest < 1:
            raise ConfigError(f"A benchmark wants {room} new tokens, and the model's context is {self.context}. Ask for fewer tokens.")
        if len(ids) > longest:
            self._note_cut(request, len(ids) - longest)
            return Prompt((), tuple(ids[-longest:]), text)
        return rendered or Prompt((), tuple(ids), text)

    def _text(self, request: Instance, completion: Completion, until: list[str]) -> str:
        if completion.ended is Ended.ERROR:
            self.failures[_document(request)] = completion.error or "generation failed"
            return ""
        text = self.chat.decode(completion.ids, skip_special_tokens=True)
        found: str = postprocess_generated_text(text, until, None)
        return found

    def _note_cut(self, request: Instance, tokens: int) -> None:
        if tokens > 0:
            self.cut[_document(request)] = max(tokens, self.cut.get(_document(request), 0))


def _document(request: Instance) -> tuple[str, int]:
    return str(request.task_name), int(request.doc_id)
