"""What a template may spend: time, memory, and the size of what one operation makes.

In: a rendering, while it runs. Out: nothing, or an exception inside of it that says which bound it broke. A sandbox keeps a template
away from files and from Python; these keep it from running, or growing, without an end.

A thread looks at the renderings under way: each costs an entry in a dictionary, and no clock. It counts the processor time of the
rendering's own thread where the system tells it, so that a busy machine is not taken for a template without an end. What one operation
would make in C is looked at before it is made, for nothing can be stopped in there.
Left out on purpose: parsing, which takes as long as the template is.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from types import BuiltinMethodType, TracebackType
from typing import Any

import jinja2
import psutil

SECONDS = 20.0
"""Of one rendering: a conversation of a million tokens takes less than one."""
GROWTH = 2 * 2**30
"""Bytes by which the process may grow while one rendering runs."""
LETTERS = 2**26
"""Letters (or entries of a list) that one operation may make."""
LOOK = 0.25
"""Seconds between two looks."""
PENDING = 1000
"""Calls of a function behind which an exception that was thrown at a thread has arrived: it comes with the next one or two."""


class TooLarge(jinja2.exceptions.SecurityError):
    """One operation would make too much."""

    def __init__(self, what: str) -> None:
        super().__init__(f"one operation in it would make {what}, more than any conversation has")


class Overspent(jinja2.exceptions.SecurityError):
    """A rendering took too long, or too much memory. Thrown at its thread, which can give it no words."""

    def __init__(self) -> None:
        bounds = f"{SECONDS:g} seconds or {GROWTH / 2**30:g} GiB"
        super().__init__(f"it takes more than {bounds} for one conversation, as a loop without an end does")


class Bounded:
    """While the block runs in this thread, it is looked at. Raises `Overspent` in it, and never behind it."""

    __slots__ = ("began", "fired", "held", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.began: float | None = None
        """Seconds of the thread when it was first looked at."""
        self.held = 0
        """Bytes of the process then."""
        self.fired = False

    def __enter__(self) -> None:
        _watch()
        _ACTIVE[self.thread] = self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while True:  # what was thrown while the entry was there may arrive as late as here
            try:
                with _LOCK:
                    _ACTIVE.pop(self.thread, None)
                if self.fired:
                    for _ in range(PENDING):
                        _breathe()
                break
            except Overspent:
                continue
        if self.fired and kind is None:
            raise Overspent


_ACTIVE: dict[int, Bounded] = {}
_LOCK = threading.Lock()
_WATCHED = [0]
"""The process that has a thread looking; a fork has none."""


def _breathe() -> None:
    """A call: at each, Python delivers what was thrown at its thread."""


def _watch() -> None:
    if _WATCHED[0] != os.getpid():
        _WATCHED[0] = os.getpid()
        threading.Thread(target=_look, name="sapwood-templates", daemon=True).start()


def _look() -> None:
    process = psutil.Process()
    while True:
        time.sleep(LOOK)
        if _ACTIVE:
            with _LOCK:  # whose entry is here while the lock is held has not left its block
                for one in list(_ACTIVE.values()):
                    _judge(one, process.memory_info().rss)


def _judge(one: Bounded, held: int) -> None:
    seconds = _seconds_of(one.thread)
    if one.began is None:
        one.began, one.held = seconds, held
    elif seconds - one.began > SECONDS or held - one.held > GROWTH:
        one.fired = True
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(one.thread), ctypes.py_object(Overspent))


def _seconds_of(thread: int) -> float:
    """Processor seconds of a living thread; of the clock on the wall where the system does not tell them."""
    clock_of = getattr(time, "pthread_getcpuclockid", None)
    return time.monotonic() if clock_of is None else time.clock_gettime(clock_of(thread))


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Raise `TooLarge` for a product, a power or a formatted text that would be."""
    if operator == "*":
        for times, one in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(one, str | bytes | list | tuple):
                _check(times * len(one))
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and abs(left) > 1 and left.bit_length() * right > LETTERS:
            raise TooLarge(f"a number of {left.bit_length() * right:,} bits")
    elif operator == "%" and isinstance(left, str):
        check_format(left)


def check_call(called: Any, arguments: tuple[Any, ...]) -> None:
    """Raise `TooLarge` where a method of a text would make too large a one."""
    if type(called) is BuiltinMethodType and called.__name__ in _METHODS and isinstance(called.__self__, str):
        _check(_METHODS[called.__name__](called.__self__, *arguments))


def guarded(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Jinja's filters that make much out of little, each behind a look at what it would make."""
    return {name: _guarded(filters[name], size) for name, size in _FILTERS.items()}


def _guarded(real: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
    takes_context = hasattr(real, "jinja_pass_arg")

    def guard(*arguments: Any, **named: Any) -> Any:
        _check(size(*arguments[takes_context:], **named))
        return real(*arguments, **named)

    if takes_context:
        guard.jinja_pass_arg = real.jinja_pass_arg  # type: ignore[attr-defined]
    return guard


def _check(letters: Any) -> None:
    if isinstance(letters, int) and letters > LETTERS:
        raise TooLarge(f"{letters:,} letters")


_FIELD = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{6})|\{[^{}]*:[^{}]*(?:\{|\d{6})")
"""A field whose width has six digits or is an argument, of `%` or of `format`."""


def check_format(text: str, *_: Any, **__: Any) -> int:
    """Raise `TooLarge` where a format names a width that would be; what else it makes is as long as what it is given."""
    if found := _FIELD.search(text):
        raise TooLarge(f"a field as wide as {found[0]!r} may say")
    return 0


def _joined(between: Any, parts: Any) -> int:
    if not isinstance(parts, list | tuple):
        return 0
    return len(str(between)) * len(parts) + sum(len(part) for part in parts if isinstance(part, str))


def _replaced(text: Any, old: Any = "", new: Any = "", *_: Any) -> int:
    whole = str(text)
    return len(whole) + whole.count(str(old)) * len(str(new))


def _wide(_: Any, width: Any = 0, *__: Any) -> int:
    return width if isinstance(width, int) else 0


def _indented(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    return (width if isinstance(width, int) else len(str(width))) * (1 + str(text).count("\n"))


_METHODS: Mapping[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _wide),
    "expandtabs": lambda text, width=8: int(width) * text.count("\t"),
    "join": _joined,
    "replace": _replaced,
}
_FILTERS: Mapping[str, Callable[..., int]] = {
    "batch": _wide,
    "center": _wide,
    "format": check_format,
    "indent": _indented,
    "join": lambda parts, between="", attribute=None: _joined(between, parts),
    "replace": lambda text, old="", new="", count=None: _replaced(text, old, new),
}
