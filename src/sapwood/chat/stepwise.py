"""Templates that write message by message, proved to do so from their syntax tree.

A template is stepwise if what it writes for the first i messages is the beginning of what it writes for more: it is one loop
over all messages whose body looks neither ahead nor at the end, and what stands behind the loop does not look at messages. Then
one rendering holds every prompt of a conversation. In: the template's source. Out: the template compiled with a mark before each
message and behind the last (`marked`), or None where the proof fails; such a template is rendered once for every prompt.
Left out on purpose: cleverness. Anything that is not plainly harmless makes the proof fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import jinja2
from jinja2 import nodes

N = TypeVar("N", bound=nodes.Node)

MARK = "\ue000\ue000"
"""What stands between messages. No text holds it: each U+E000 of a text is covered and followed by another letter (see `shield`)."""

_BACKWARD = frozenset(("first", "index", "index0"))
"""What a loop may say of itself without looking ahead."""
_HARMLESS = (
    nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.Name, nodes.NSRef, nodes.Const, nodes.Getattr,
    nodes.Getitem, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.BinExpr, nodes.UnaryExpr,
    nodes.Filter, nodes.Test, nodes.Call, nodes.CondExpr, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Slice, nodes.Keyword,
    nodes.ExprStmt,
)  # fmt: skip


def marked(environment: jinja2.Environment, source: str) -> jinja2.Template | None:
    """The template with `MARK`s around each message, if it is stepwise. `source` must be valid Jinja."""
    tree = environment.parse(source)
    place = _loop_over_messages(tree.body)
    if place is None:
        return None
    loop = tree.body[place]
    assert isinstance(loop, nodes.For)
    mark = nodes.Output([nodes.TemplateData(MARK)], lineno=loop.lineno)
    loop.body = [mark, *loop.body]
    tree.body = [*tree.body[: place + 1], nodes.Output([nodes.TemplateData(MARK)], lineno=loop.lineno), *tree.body[place + 1 :]]
    return jinja2.Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


def _loop_over_messages(body: list[nodes.Node]) -> int | None:
    """Where the only loop over the messages stands, if everything else is harmless."""
    aliases = {"messages"}
    for place, node in enumerate(body):
        if isinstance(node, nodes.Assign) and _is_name(node.node, aliases) and isinstance(node.target, nodes.Name):
            aliases.add(node.target.name)
        elif isinstance(node, nodes.For) and _is_name(node.iter, aliases):
            return place if _proved(body[:place], node, body[place + 1 :], aliases) else None
        elif not _looks_at_the_first_alone([node], aliases):
            return None
    return None


def _proved(head: list[nodes.Node], loop: nodes.For, tail: list[nodes.Node], aliases: set[str]) -> bool:
    plain = isinstance(loop.target, nodes.Name) and loop.target.name not in {*aliases, "loop"}
    if not plain or loop.else_ or loop.test is not None or loop.recursive:
        return False
    if not _looks_at_the_first_alone(loop.body, aliases) or not _looks_back_alone(loop.body):
        return False
    set_inside = {name.name for part in loop.body for name in part.find_all((nodes.NSRef,))}
    set_inside |= {name.name for part in loop.body for name in part.find_all((nodes.Name,)) if name.ctx == "store"}
    if "add_generation_prompt" in _names([*head, *loop.body]):
        return False
    return all(_harmless(part) for part in tail) and not _names(tail) & (aliases | set_inside | {"loop"})


def _is_name(node: nodes.Node, names: set[str]) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name in names


def _looks_at_the_first_alone(parts: Iterable[nodes.Node], aliases: set[str]) -> bool:
    """Whether messages are looked at one by one, but for the first, and never set."""
    for part in parts:
        if not _harmless(part):
            return False
        first = {
            id(item.node)
            for item in _all(part, nodes.Getitem)
            if _is_name(item.node, aliases) and isinstance(item.arg, nodes.Const) and item.arg.value == 0 and item.ctx == "load"
        }
        if any(name.name in aliases and id(name) not in first for name in _all(part, nodes.Name)):
            return False
    return True


def _looks_back_alone(parts: Iterable[nodes.Node]) -> bool:
    """Whether the loop is asked only for what it knows before its end. Loops inside have a `loop` of their own."""
    for part in parts:
        if isinstance(part, nodes.For):
            inner = [part.iter, *([part.test] if part.test is not None else [])]
            if not _looks_back_alone(inner):
                return False
            continue
        if isinstance(part, nodes.Name) and part.name == "loop":
            return False
        if isinstance(part, nodes.Getattr) and _is_name(part.node, {"loop"}):
            if part.attr not in _BACKWARD:
                return False
            continue
        if not _looks_back_alone(part.iter_child_nodes()):
            return False
    return True


def _harmless(part: nodes.Node) -> bool:
    return isinstance(part, _HARMLESS) and all(_harmless(child) for child in part.iter_child_nodes())


def _all(part: nodes.Node, kind: type[N]) -> list[N]:
    """Nodes of a kind, the part itself among them."""
    return [*([part] if isinstance(part, kind) else []), *part.find_all(kind)]


def _names(parts: Iterable[nodes.Node]) -> set[str]:
    return {name.name for part in parts for name in _all(part, nodes.Name)}
