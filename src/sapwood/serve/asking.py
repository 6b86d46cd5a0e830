"""The JSON of a request → what the engine is asked. Anything that is not understood is refused by name, nothing is ignored.

In: the decoded body of `/v1/chat/completions` or `/v1/completions`. Out: `Asked`. Fields that say nothing about the answer (`user`,
`metadata`, …) are taken and have no use. Left out on purpose: images by address (nothing is fetched), sounds.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from sapwood.chat import Chat
from sapwood.chat.overflow import Fitted, Overflow, OverflowingError, fitted_prompt, summary_of, summary_tokens
from sapwood.config import did_you_mean
from sapwood.data.messages import read_messages, read_tools
from sapwood.data.refusal import Refused
from sapwood.errors import SapwoodError
from sapwood.records import Completion, Constraint, Message, Prompt, SamplingParams
from sapwood.records.sampling import ConstraintKind
from sapwood.serve.fields import RefusalError, bias, flag, number, stop_ids, stops, whole
from sapwood.serve.limits import ServeLimits

_NUMBERS = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "top_k": (int, -1, 10**9),
    "min_p": (float, 0, 1),
    "presence_penalty": (float, -2, 2),
    "frequency_penalty": (float, -2, 2),
    "repetition_penalty": (float, 0, 100),
}
"""Fields that become sampling parameters of the same name: (type, least, greatest)."""
_BOTH = frozenset(
    (
        *(*_NUMBERS, "model", "n", "stream", "stream_options", "stop", "stop_token_ids", "seed", "max_tokens"),
        *("logprobs", "return_token_ids", "structured_outputs", "logit_bias"),
    )
)
_CHAT = _BOTH | {
    *("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "top_logprobs", "max_completion_tokens"),
    *("chat_template_kwargs", "reasoning_effort", "overflow"),
}
_TEXT = _BOTH | {"prompt", "echo"}
_NO_MATTER = frozenset(("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"))
_MESSAGE_EXTRAS = ("refusal", "annotations", "audio")
"""What clients send back of an answer they got; empty where there was nothing."""


@dataclass(frozen=True)
class Asked:
    """One request, understood."""

    model: str
    adapter: str | None
    prompts: tuple[Prompt, ...]
    """One, but for lists of texts."""
    params: SamplingParams
    samples: int
    stream: bool
    include_usage: bool
    logprobs: int | None
    """How many alternatives to give with each token; None gives no log-probabilities."""
    token_ids: bool
    echo: bool = False
    only_echo: bool = False
    """The prompt is given back and nothing is added to it: one token is sampled, and not told."""
    dropped: int = 0
    """Messages that were left out because the conversation outgrew the context, as the request allowed."""
    unfinished: Callable[[Completion], Asked] | None = None
    """Of what is left out a summary is to be written first: this asks for it, and here is what to call with it."""


@dataclass(frozen=True)
class Served:
    """What a server answers with."""

    models: Mapping[str, str | None]
    """The names that clients know, each with the adapter that answers: None is the model as it stands."""
    chat: Chat
    limits: ServeLimits
    arguments: Mapping[str, Any]
    """Template arguments that hold where a request does not say otherwise: those a run was trained with."""


def read_chat(body: Any, served: Served, summary: Completion | None = None) -> Asked:
    """A chat request; with the summary of what it outgrew, where that was asked for. Raises `RefusalError`."""
    _check_fields(body, _CHAT, served)
    messages = _messages(body.get("messages"))
    try:
        given = read_tools(body.get("tools"))
    except Refused as refused:
        raise RefusalError(f"{refused.args[0]}", "tools") from None
    tools, constraint = _tool_choice(body, given)
    constraint = _structured(body.get("structured_outputs"), _response_format(body.get("response_format"), constraint))
    limit = whole(body, "max_completion_tokens", 1) or whole(body, "max_tokens", 1)
    fitted = _fitted(body, messages, tools, limit, served, summary)
    logprobs = None
    if flag(body, "logprobs"):
        logprobs = whole(body, "top_logprobs", 0, 20) or 0
    elif body.get("top_logprobs"):
        raise RefusalError("`top_logprobs` needs `logprobs: true`.", "top_logprobs")
    asked = _asked(body, (fitted.prompt,), limit, logprobs, constraint, served)
    if fitted.to_summarise is not None:
        short = SamplingParams(max_new_tokens=summary_tokens(served.chat))
        finish = partial(read_chat, body, served)
        return dataclasses.replace(asked, prompts=(fitted.to_summarise,), params=short, samples=1, stream=False, unfinished=finish)
    return dataclasses.replace(asked, dropped=fitted.dropped)


def _fitted(
    body: Mapping[str, Any],
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    limit: int | None,
    served: Served,
    summary: Completion | None,
) -> Fitted:
    """The prompt, without the oldest exchanges where it outgrows the context and the request lets them go."""
    chat, arguments = served.chat, _arguments(body, served)
    overflow: Any = body.get("overflow") or "refuse"
    if overflow not in get_args(Overflow):
        raise RefusalError(f"`overflow` is {overflow!r:.40}; give one of: {', '.join(get_args(Overflow))}.", "overflow")
    try:
        if overflow == "refuse":
            return Fitted(chat.prompt(messages, tools, arguments, where="the request"), 0)
        room = min(limit or served.limits.max_new_tokens, (chat.context_length or 0) // 4) or 1
        told = None if summary is None else summary_of(summary)
        return fitted_prompt(chat, messages, tools, arguments, overflow=overflow, room=room, where="the request", summary=told)
    except OverflowingError as error:
        raise RefusalError(str(error), "messages", code="context_length_exceeded") from None
    except SapwoodError as error:
        raise RefusalError(str(error), "messages") from None


def read_text(body: Any, served: Served) -> Asked:
    """A request to continue texts, or lists of token ids, as they are. Raises `RefusalError`."""
    _check_fields(body, _TEXT, served)
    given = body.get("prompt")
    rows = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(rows) > served.limits.max_samples:
        raise RefusalError(f"{len(rows)} prompts in one request; at most {served.limits.max_samples} are allowed.", "prompt")
    prompts = tuple(_raw_prompt(row, served.chat) for row in rows)
    echo, limit, logprobs = flag(body, "echo"), whole(body, "max_tokens", 0), whole(body, "logprobs", 0, 20)
    if limit == 0 and not echo:
        raise RefusalError("`max_tokens` is 0, and nothing is asked for but the prompt. Give at least 1, or `echo: true`.", "max_tokens")
    if echo and logprobs is not None and flag(body, "stream"):
        raise RefusalError("Log-probabilities of an echoed prompt come with whole answers: leave out `stream`.", "stream")
    constraint = _structured(body.get("structured_outputs"), None)
    asked = _asked(body, prompts, 16 if limit is None else max(1, limit), logprobs, constraint, served)
    params = dataclasses.replace(asked.params, prompt_logprobs=echo and logprobs is not None)
    return dataclasses.replace(asked, params=params, echo=echo, only_echo=limit == 0)


def _asked(
    body: Mapping[str, Any],
    prompts: tuple[Prompt, ...],
    limit: int | None,
    logprobs: int | None,
    constraint: Constraint | None,
    served: Served,
) -> Asked:
    limits = served.limits
    if limit is not None and limit > limits.max_new_tokens:
        raise RefusalError(f"max_tokens is {limit}; this server writes at most {limits.max_new_tokens} in one answer.", "max_tokens")
    for prompt in prompts:
        _check_length(prompt, served.chat)
    samples = whole(body, "n", 1, limits.max_samples) or 1
    stream = flag(body, "stream")
    options = body.get("stream_options") or {}
    if options and not stream:
        raise RefusalError("`stream_options` needs `stream: true`.", "stream_options")
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise RefusalError("`stream_options` takes `include_usage`.", "stream_options")
    given = {name: number(body, name, *bounds) for name, bounds in _NUMBERS.items()}
    chosen: dict[str, Any] = {"temperature": 1.0} | {name: value for name, value in given.items() if value is not None}
    chosen["top_k"] = max(0, chosen.get("top_k", 0))  # -1 is another way to say that it is off
    seed = whole(body, "seed", -(2**63), 2**63)
    try:
        params = SamplingParams(
            max_new_tokens=limit or limits.max_new_tokens,
            stop=stops(body.get("stop")),
            stop_ids=stop_ids(body.get("stop_token_ids")),
            logit_bias=bias(body.get("logit_bias")),
            seed=secrets.randbits(63) if seed is None else seed,
            constraint=constraint,
            top_logprobs=logprobs or 0,
            **chosen,
        )
    except SapwoodError as error:
        raise RefusalError(str(error), str(error).split(" ", 1)[0]) from None
    model = body["model"]
    return Asked(
        model,
        served.models[model],
        prompts,
        params,
        samples,
        stream,
        bool(options.get("include_usage")),
        logprobs,
        flag(body, "return_token_ids"),
    )


def _check_fields(body: Any, known: frozenset[str], served: Served) -> None:
    if not isinstance(body, dict):
        raise RefusalError("The body of a request is a JSON object.")
    for field, value in body.items():
        if field == "modalities" and value == ["text"]:
            continue
        if field not in known and field not in _NO_MATTER and value is not None:
            near = did_you_mean(field, sorted(known))
            raise RefusalError(f"`{field}` is not served here.{near} Leave it out.", field, code="unsupported_parameter")
    if not isinstance(body.get("model"), str):
        raise RefusalError(f"`model` is missing. This server has {', '.join(map(repr, served.models))}.", "model")
    check_model(body["model"], served)


def check_model(model: str, served: Served) -> None:
    """Raises `RefusalError` for a name that this server does not have."""
    if model not in served.models:
        here = ", ".join(map(repr, served.models))
        near = did_you_mean(model, list(served.models))
        raise RefusalError(f"There is no model {model!r} here.{near} This server has {here}.", "model", status=404, code="model_not_found")


def _messages(raw: Any) -> list[Any]:
    if not isinstance(raw, list) or not raw:
        raise RefusalError("`messages` is a list of messages, and at least one.", "messages")
    plain = [
        {key: value for key, value in message.items() if key not in _MESSAGE_EXTRAS or value} if isinstance(message, dict) else message
        for message in raw
    ]
    notes: Counter[str] = Counter()
    try:
        messages = read_messages(plain, notes)
    except Refused as refused:
        raise RefusalError(str(refused.args[0]), "messages") from None
    if note := next((note for note in notes if note.startswith("message key")), None):
        raise RefusalError(f"{note} Leave it out.", "messages")
    for message in messages:
        for medium in message.media:
            if medium.uri[:5].lower() != "data:":  # a path would be a file of this machine, and nothing is fetched
                raise RefusalError("An image is sent as `data:image/…;base64,…`; nothing is fetched here.", "messages")
    return messages


def _tool_choice(body: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], Constraint | None]:
    """The tools to offer, and what holds the answer to them."""
    choice, one = body.get("tool_choice"), not flag(body, "parallel_tool_calls", otherwise=True)
    if choice is not None and not tools and choice not in ("none", "auto"):
        raise RefusalError("`tool_choice` names a tool, and there are none in `tools`.", "tool_choice")
    if choice in (None, "auto"):
        strict = any(tool["function"].get("strict") is True for tool in tools)
        held = Constraint("call or text" if one else "calls or text", list(tools)) if tools and (one or strict) else None
        return tools, held
    if choice == "none":
        return (), None
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return tools, _allowed(choice.get("allowed_tools"), tools, one)
    if choice == "required":
        return tools, Constraint("call" if one else "calls", list(tools))
    name = choice.get("function", {}).get("name") if isinstance(choice, dict) and isinstance(choice.get("function"), dict) else None
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise RefusalError(f"`tool_choice` is none, auto, required, or names one of `tools`; {name!r} is none of them.", "tool_choice")
    return tools, Constraint("call" if one else "calls", named)


def _allowed(given: Any, tools: Sequence[Mapping[str, Any]], one: bool) -> Constraint:
    """OpenAI's way to name some of the tools: all are told, these alone are called."""
    asked = given if isinstance(given, dict) else {}
    names = {tool.get("function", {}).get("name") for tool in asked.get("tools") or () if isinstance(tool, dict)}
    some = [tool for tool in tools if tool["function"]["name"] in names]
    if asked.get("mode") not in ("auto", "required") or not names or len(some) < len(names):
        raise RefusalError(
            "`tool_choice.allowed_tools` is {mode: auto or required, tools: [{type: function, function: {name: NAME}}]}, each of `tools`.",
            "tool_choice",
        )
    called: ConstraintKind = "call" if one else "calls"
    either: ConstraintKind = "call or text" if one else "calls or text"
    return Constraint(called if asked["mode"] == "required" else either, some)


def _response_format(given: Any, constraint: Constraint | None) -> Constraint | None:
    kind = given.get("type") if isinstance(given, dict) else given
    if kind in (None, "text"):
        return constraint
    if constraint is not None:
        raise RefusalError("`response_format` and what holds calls of `tools` exclude each other.", "response_format")
    if kind == "json_object":
        return Constraint("json")
    inner = given.get("json_schema") if isinstance(given, dict) else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if kind == "json_schema" and isinstance(schema, dict):
        return Constraint("json_schema", schema)
    raise RefusalError(
        "`response_format` is {type: text}, {type: json_object} or {type: json_schema, json_schema: {schema: {…}}}.", "response_format"
    )


def _structured(given: Any, constraint: Constraint | None) -> Constraint | None:
    """vLLM's field for what OpenAI's has no word for."""
    if not given:
        return constraint
    if constraint is not None:
        raise RefusalError("`structured_outputs` excludes `response_format` and what holds calls of `tools`.", "structured_outputs")
    kinds = {"json": "json_schema", "json_object": "json", "regex": "regex", "choice": "choice", "grammar": "lark"}
    if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in kinds:
        raise RefusalError(f"`structured_outputs` is an object with one of {', '.join(kinds)}.", "structured_outputs")
    (name, value) = next(iter(given.items()))
    try:
        return Constraint(kinds[name], None if name == "json_object" and value is True else value)  # type: ignore[arg-type]
    except SapwoodError as error:
        raise RefusalError(str(error), "structured_outputs") from None


def _arguments(body: Mapping[str, Any], served: Served) -> dict[str, Any]:
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, dict):
        raise RefusalError("`chat_template_kwargs` is an object.", "chat_template_kwargs")
    effort = body.get("reasoning_effort")
    if effort is not None:
        given = given | {"reasoning_effort": effort}
    for name in given:
        if not any(name in source for source in served.chat.template_sources):
            raise RefusalError(f"The model's template knows no {name!r}. Leave it out.", "chat_template_kwargs" if effort is None else name)
    return {**served.arguments, **given}


def _raw_prompt(row: Any, chat: Chat) -> Prompt:
    if isinstance(row, str):
        return Prompt((), tuple(chat.tokens.encode(row)), row)
    if (
        isinstance(row, list)
        and row
        and all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31 for token in row)
    ):
        return Prompt((), tuple(row), chat.decode(row))
    raise RefusalError("`prompt` is a text, a list of token ids, or a list of either.", "prompt")


def _check_length(prompt: Prompt, chat: Chat) -> None:
    if not prompt.ids:
        raise RefusalError("The prompt has no tokens, so there is nothing to continue.", "prompt")
    if chat.context_length is not None and len(prompt.ids) >= chat.context_length:
        raise RefusalError(
            f"The prompt has {len(prompt.ids)} tokens and the model's context holds {chat.context_length}, the answer included.",
            "messages" if prompt.messages else "prompt",
            code="context_length_exceeded",
        )
