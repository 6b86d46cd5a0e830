"""Tool schemas from functions: those of transformers where it gives one, more where it does not, clear words where none can be."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict, Union

import pytest
from transformers.utils import get_json_schema

from sapwood.chat import schema_of
from sapwood.errors import DataError


class Wood(enum.Enum):
    SAP = "sapwood"
    HEART = "heartwood"


@dataclasses.dataclass
class Place:
    latitude: float
    name: str = ""
    tags: list[str] = dataclasses.field(default_factory=list)


class Query(TypedDict):
    text: str
    limit: NotRequired[int]


class Node(TypedDict):
    children: list[Node]


def plain(kind: str, rings: int, width: float, living: bool = True) -> str:
    """
    Finds a tree.

    More about it.

    Args:
        kind: Which tree,
            in English.
        rings: How old.
        width: How wide: in metres.
        living: Whether it lives (choices: ["yes", "no"])

    Returns:
        What was found.
    """
    return kind


def nested(
    names: list[str],
    table: dict[str, list[int]],
    pair: tuple[int, str],
    either: Union[int, str],  # noqa: UP007
    maybe: Optional[list[str]] = None,  # noqa: UP045
    mixed: int | list[int] | None = None,
    wood: Wood = Wood.SAP,
    unit: Literal["m", "cm", 3] = "m",
    anything: Any = None,
    bare: list = [],  # type: ignore[type-arg]  # noqa: B006
) -> None:
    """Does much.

    Args:
        names: Names.
        table: A table.
        pair: A pair.
        either: One or the other.
        maybe: Perhaps.
        mixed: Mixed.
        wood: The wood.
        unit: The unit.
        anything: Anything.
        bare: Bare.
    """


def nothing() -> dict[str, int]:
    """Does nothing."""
    return {}


class Grower:
    def grow(self, speed: float) -> list[Place]:
        """Grows.

        Args:
            speed: How fast
        """
        return []


@pytest.mark.parametrize("function", [plain, nested, nothing, Grower.grow, Grower().grow], ids=lambda f: f.__qualname__)
def test_it_agrees_with_transformers(function: Callable[..., Any]) -> None:
    mine, theirs = schema_of(function), get_json_schema(function)
    if function.__name__ == "grow":  # a dataclass: transformers leaves the return value out
        assert mine["function"].pop("return")["items"]["required"] == ["latitude"]
    assert mine == theirs


def test_what_transformers_cannot_say() -> None:
    def search(place: Place, query: Query, near: Annotated[list[Place] | None, "Where else"] = None, *, ids: tuple[int, ...] = ()) -> None:
        pass

    function = schema_of(search)["function"]
    assert function["description"] == ""
    parameters = function["parameters"]
    assert parameters["required"] == ["place", "query"]
    place = {
        "type": "object",
        "properties": {"latitude": {"type": "number"}, "name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["latitude"],
    }
    assert parameters["properties"]["place"] == place
    assert parameters["properties"]["query"]["required"] == ["text"]
    assert parameters["properties"]["near"] == {"type": "array", "items": place, "nullable": True, "description": "Where else"}
    assert parameters["properties"]["ids"] == {"type": "array", "items": {"type": "integer"}}


def test_docstrings_may_repeat_the_type_or_be_partial() -> None:
    def find(kind: str, rings: int, near: str) -> None:
        """Finds.

        Args:
            kind (str): Which tree,
                and where: here.
            rings (int, optional): How old.
        """

    properties = schema_of(find)["function"]["parameters"]["properties"]
    assert properties == {
        "kind": {"type": "string", "description": "Which tree, and where: here."},
        "rings": {"type": "integer", "description": "How old."},
        "near": {"type": "string"},
    }


def test_a_wrapped_function_is_seen_through() -> None:
    @functools.wraps(plain)
    def logged(*args: Any, **kwargs: Any) -> str:
        return plain(*args, **kwargs)

    assert schema_of(logged) == schema_of(plain)


def test_what_no_schema_can_say_is_refused_by_name() -> None:
    def many(*trees: str) -> None: ...

    def named(**trees: str) -> None: ...

    def untyped(tree) -> None: ...  # type: ignore[no-untyped-def]

    def placed(tree: str, /) -> None: ...

    def odd(tree: complex) -> None: ...

    def keyed(tree: dict[int, str]) -> None: ...

    def endless(tree: Node) -> None: ...

    for function, words in [
        (many, "argument `trees`: `\\*args` have no names"),
        (named, "argument `trees`: `\\*\\*kwargs` have no names"),
        (untyped, "argument `tree`: there is no type hint"),
        (placed, "only be given by place"),
        (odd, "complex is no type that JSON can write"),
        (keyed, "keys of dict"),
        (endless, "Node holds itself"),
    ]:
        with pytest.raises(DataError, match=f"function {function.__name__}, .*{words}"):
            schema_of(function)
