"""Reward functions as people hand them to TRL → Sapwood's rewards, called as TRL calls them.

In: one function or several, plain or async, names as `--rewards` takes them, reward models (a folder, an id of the hub, or the model
itself); weights; the columns of the rows. Out: `Reward`s, and one line for every pattern that is known to reward nothing. A function that
names a column that the rows lack is refused before anything is sampled.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.evaluate.rewards import Reward, reward_named
from sapwood.trl.reward_models import ModelRewards
from sapwood.trl.state import TrainerState

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state")
"""Keywords that every reward function may take, beside the columns of the rows."""
NOT_GIVEN = ("log_extra", "log_metric", "environments")
"""Keywords of TRL's that Sapwood does not give."""
MESSAGES = (
    "completions are lists of one message here, as in TRL, because the prompts are lists of messages: the text is completion[0]['content']"
)


def rewards_of(
    given: Any,
    weights: Any,
    columns: Sequence[str],
    conversational: bool,
    state: Callable[[], TrainerState],
    notes: list[str],
    models: ModelRewards | None = None,
) -> list[Reward]:
    """The rewards, each with a name of its own; `models` makes those of models. Raises `ConfigError` that names the function and what to
    change, and what reward models raise."""
    functions = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    if not functions:
        raise ConfigError(
            "GRPOTrainer: `reward_funcs` is missing, so no answer is better than another. Give a function, or a list of them."
        )
    factors = [1.0] * len(functions) if weights is None else [float(value) for value in weights]
    if len(factors) != len(functions):
        raise ConfigError(f"reward_weights holds {len(factors)} weights for {len(functions)} reward functions. Give one for each.")
    models = models or ModelRewards(conversational)
    models.check(len(functions))
    found: list[Reward] = []
    for place, (function, weight) in enumerate(zip(functions, factors, strict=True)):
        taken = {reward.name for reward in found}
        if isinstance(function, Path) or (isinstance(function, str) and models.names(function)):
            found.append(models.named(str(function), place, _unlike(Path(function).name, taken), weight))
            continue
        if isinstance(function, str):
            found.append(_named(function, weight))
            continue
        if isinstance(function, PreTrainedModel):
            name = str(getattr(function.config, "_name_or_path", "") or type(function).__name__)
            found.append(models.held(function, place, _unlike(Path(name).name, taken), weight))
            continue
        name = _name_of(function, taken)
        if not callable(function) or isinstance(function, nn.Module):
            raise ConfigError(
                f"reward_funcs holds a {type(function).__name__}. Give functions, or reward models: a …ForSequenceClassification of "
                "transformers with one label, or its folder."
            )
        _check(name, function, columns, notes)
        notes += [f"{name}: {line}" for line in suspicions(function, conversational)]
        called = _called(function, columns, conversational, state)
        found.append(Reward(name, function=called, weight=weight, conversational=conversational))
    return found


def _named(word: str, weight: float) -> Reward:
    """A reward of Sapwood's own by its name."""
    try:
        named = reward_named(word, {})
    except ConfigError as error:
        raise ConfigError(
            f"reward_funcs holds {word!r}, which is no folder of a reward model here, and no id of one on the hub (ORG/NAME). {error}"
        ) from None
    return Reward(named.name, named.scorer, named.function, named.weight * weight, named.conversational)


def _name_of(function: Any, taken: set[str]) -> str:
    return _unlike(str(getattr(function, "__name__", type(function).__name__)), taken)


def _unlike(first: str, taken: set[str]) -> str:
    """The name, with a number behind it where there is one like it."""
    name, count = first, 1
    while name in taken:
        count += 1
        name = f"{first}_{count}"
    return name


def _parameters(function: Any) -> Mapping[str, inspect.Parameter] | None:
    """Keywords that a function names; None where it cannot be asked."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def _takes_all(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


def _check(name: str, function: Any, columns: Sequence[str], notes: list[str]) -> None:
    """Whether the rows have every column that a function needs."""
    parameters = _parameters(function)
    if parameters is None:
        return
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for word, one in parameters.items():
        if one.kind not in by_keyword or one.default is not one.empty or word in {*GIVEN, *columns}:
            continue
        if word in NOT_GIVEN:
            raise ConfigError(f"The reward {name} takes `{word}`, which Sapwood does not give: metrics.jsonl has every reward by its name.")
        raise ConfigError(
            f"The reward {name} takes `{word}`, and the rows have no such column: they have {', '.join(columns) or 'prompt alone'}."
            f"{did_you_mean(word, [*columns, *GIVEN])} Rename the column (dataset.rename_column) or the argument."
        )
    if not _takes_all(parameters):
        notes.append(f"{name} has no **kwargs, so it is given only what it names (TRL would stop here).")


def _called(function: Any, columns: Sequence[str], conversational: bool, state: Callable[[], TrainerState]) -> Callable[..., Any]:
    """The function as TRL calls it: prompts as the rows have them, and no keyword that a function does not take."""
    parameters = _parameters(function)
    named = None if parameters is None or _takes_all(parameters) else set(parameters)

    def called(**given: Any) -> Any:
        given["prompts"] = given.pop("prompt", given["prompts"])
        if "reference" not in columns:
            given.pop("reference", None)
        given["trainer_state"] = state()
        try:
            return function(**{name: value for name, value in given.items() if named is None or name in named})
        except (TypeError, AttributeError) as error:
            if conversational:
                raise type(error)(f"{error} ({MESSAGES})") from error
            raise

    return called


def suspicions(function: Any, conversational: bool) -> list[str]:
    """Patterns in a reward's source that reward nothing, or something else than they seem to; empty where there is no source."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return []
    found = []
    if re.search(r"\bre\.(match|search|fullmatch|findall)\(", source) and ".*" in source and not re.search(r"DOTALL|re\.S\b|\(\?s", source):
        found.append(
            "its pattern has `.*` without re.DOTALL, so it never matches across a line break. Write re.match(pattern, text, re.DOTALL)."
        )
    counts = re.search(r"\blen\(\s*(completion|content|response|text|c|x|s)\s*\)", source)
    if counts and conversational and "content" not in source:
        found.append(f"{counts[0]} is 1 for every answer: {MESSAGES}.")
    elif counts and "split" not in source:
        found.append(f"{counts[0]} counts letters. Tokens are in the keyword completion_ids: len(completion_ids[i]).")
    if "isdigit()" in source:
        found.append("isdigit() is False for -4, 4.2 and 1,000.")
    return found
