"""A prompt and how to sample → the JSON of one chat request.

Left out where it has its default, so that servers which know only the core of the protocol are not asked for more. What the
protocol cannot say is refused by name, never dropped. Sounds and videos are left out on purpose; images are sent as they are.
"""

from __future__ import annotations

import base64
import dataclasses
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from sapwood.errors import ConfigError, DataError, storage
from sapwood.records import Media, Message, Prompt, SamplingParams

_CORE = ("max_new_tokens", "temperature", "seed")
"""Always sent."""
_NAMES = {
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
    "stop_ids": "stop_token_ids",
    "top_logprobs": "top_logprobs",
}
"""Sent where they are not at their defaults, under the names that vLLM, SGLang and llama.cpp give what OpenAI's API lacks."""


def body_of(model: str, prompt: Prompt, params: SamplingParams) -> dict[str, Any]:
    """The request, without a seed. Raises `ConfigError` for a parameter that the protocol cannot say, `DataError` for such media."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_written(message) for message in prompt.messages],
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
    }
    if prompt.tools:
        body["tools"] = [dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in prompt.tools]
    if prompt.template_arguments:
        body["chat_template_kwargs"] = dict(prompt.template_arguments)
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if field.name in _CORE or value == field.default:
            continue
        if field.name == "constraint":
            body |= _constrained(value)
        elif field.name == "logit_bias":
            body["logit_bias"] = {str(token): bias for token, bias in value}  # ids of the server's own tokenizer
        elif field.name in _NAMES:
            body[_NAMES[field.name]] = list(value) if isinstance(value, tuple) else value
        else:
            default = repr(field.default)
            raise ConfigError(f"{field.name} is {value!r}, which a server's chat endpoint cannot be asked for. Leave it at {default}.")
    if params.top_logprobs:
        body["logprobs"] = True
    return body


def _constrained(constraint: Any) -> dict[str, Any]:
    """`response_format`, which most servers know; for texts, patterns and grammars vLLM's names."""
    if constraint.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if constraint.kind == "json_schema":
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": constraint.value}}}
    if constraint.kind in ("regex", "choice"):
        value = list(constraint.value) if constraint.kind == "choice" else constraint.value
        return {"structured_outputs": {constraint.kind: value}}
    raise ConfigError(f"A constraint of kind {constraint.kind!r} has no place in a chat request. Use json, json_schema, regex or choice.")


def _written(message: Message) -> dict[str, Any]:
    """A message as the protocol has it: arguments of calls as JSON text, images as data."""
    written = message.for_template()
    for call in written.get("tool_calls", ()):
        call["function"]["arguments"] = orjson.dumps(call["function"]["arguments"]).decode()
    if message.media:
        waiting = iter(message.media)
        written["content"] = [part if part["type"] == "text" else _image(next(waiting)) for part in written["content"]]
    return written


def _image(medium: Media) -> Mapping[str, Any]:
    if medium.kind != "image":
        raise DataError(f"{medium.address}: only images can be sent to a server, found {medium.kind}. Leave the row out.")
    if medium.uri[:5].lower() == "data:":
        return {"type": "image_url", "image_url": {"url": medium.uri}}
    kind = mimetypes.guess_type(medium.uri)[0] or "image/png"
    try:
        with storage(medium.uri, "read"):
            data = base64.b64encode(Path(medium.uri).read_bytes()).decode()
    except FileNotFoundError:
        raise DataError(f"{medium.uri}: no such file. Put the image back, or leave the row out.") from None
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
