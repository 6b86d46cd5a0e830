"""A template that never ends, or that makes much out of little, is stopped; one that works is not touched."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import datetime

import pytest

from sapwood.chat import bounds
from sapwood.chat.templating import Template
from sapwood.errors import TemplateError
from sapwood.records import Message

TODAY = datetime(2026, 1, 1)
MESSAGES = [Message("user", "q" * 2000), Message("assistant", "a")]
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
CALLS_ITSELF = "{% macro f(n) %}{{ f(n - 1) if n else '' }}{{ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}"


def rendered(source: str) -> str:
    template = Template(source, "t.jinja", TODAY)
    return template.render(MESSAGES, tools=(), generation_prompt=False, special={}, arguments={}, where="row 1")


@pytest.mark.parametrize("source", [NESTED, CALLS_ITSELF, NESTED.replace("{% endfor %}", "x{% endfor %}", 1)])
def test_a_template_without_an_end_is_stopped_and_asked_no_second_time(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    began = time.process_time()
    with pytest.raises(TemplateError, match=r"t\.jinja.*without an end"):
        rendered(source)
    assert time.process_time() - began < 10, "twelve renderings try a template out; the first alone may take its time"


GROWING = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
sys.path.insert(0, {tests!r})
from sapwood.chat import bounds
from test_bounds import TemplateError, rendered
bounds.GROWTH, bounds.LOOK = 2**28, 0.02
source = "{{% set n = namespace(x='x' * 100000) %}}{{% for i in range(40) %}}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}"
try:
    rendered(source)
except TemplateError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit that keeps this test harmless is Linux's")
def test_a_template_that_grows_without_an_end_is_stopped(request: pytest.FixtureRequest) -> None:
    code = GROWING.format(tests=str(request.path.parent))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert "GiB for one conversation" in said.stdout


@pytest.mark.parametrize(
    "expression",
    [
        "'x' * 10000000000",
        "10000000000 * 'x'",
        "messages * 1000000000",
        "('x' * 60000) * ('10000' | int)",
        "10 ** 1000000000",
        "'%10000000000d' % 1",
        "'%*d' % (10000000000, 1)",
        "'%10000000000d' | format(1)",
        "'{:>10000000000}'.format(1)",
        "'{:>{}}'.format(1, 10000000000)",
        "'x'.ljust(10000000000)",
        "'x' | center(10000000000)",
        "'a\nb' | indent(10000000000)",
        "'a\tb'.expandtabs(10000000000)",
        "('x' * 60000).replace('x', 'y' * 60000)",
        "('x' * 60000) | replace('x', 'y' * 60000)",
        "('y' * 60000).join(['x'] * 60000)",
        "(['x' * 60000] * 60000) | join",
        "[1] | batch(10000000000, 'x') | list",
        "messages | tojson(indent=10000000000)",
    ],
)
def test_what_one_operation_would_make_is_looked_at_before(expression: str) -> None:
    with pytest.raises(TemplateError, match="more than any conversation has"):
        rendered("{{ (" + expression + ") | length }}")


def test_what_templates_do_is_not_touched() -> None:
    for expression, expected in (
        ("'-' * 3", "---"),
        ("7 % 4", "3"),
        ("2 ** 10", "1024"),
        ("'%5.2f|%s' % (1.5, '*' )", " 1.50|*"),
        ("'**%s**' % 'x'", "**x**"),
        ("'{}: {:>4}'.format('a', 1)", "a:    1"),
        ("'%s, %s' | format('a', 'b')", "a, b"),
        ("'x'.center(3)", " x "),
        ("'x' | center(3)", " x "),
        ("'a\nb' | indent(2)", "a\n  b"),
        ("'abc'.replace('b', 'x')", "axc"),
        ("'abc' | replace('b', 'x')", "axc"),
        ("', '.join(['a', 'b'])", "a, b"),
        ("['a', 'b'] | join('-')", "a-b"),
        ("messages | join(' ', attribute='role')", "user assistant"),
        ("[1, 2, 3] | batch(2, 'x') | list", "[[1, 2], [3, 'x']]"),
        ("{'a': [1]} | tojson(indent=2)", '{\n  "a": [\n    1\n  ]\n}'),
    ):
        assert rendered("{{ " + expression + " }}") == expected


def test_what_is_thrown_arrives_inside_and_never_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rendering is over its bound as soon as it is looked at twice, at whatever place it is."""
    monkeypatch.setattr(bounds, "SECONDS", 0.0)
    monkeypatch.setattr(bounds, "LOOK", 1e-5)
    done: list[tuple[int, int]] = []

    def many() -> None:
        whole = stopped = 0
        for _ in range(300):
            try:
                with bounds.Bounded():
                    sum(range(2000))
                whole += 1
            except bounds.Overspent:
                stopped += 1
        for _ in range(bounds.PENDING):
            bounds._breathe()
        done.append((whole, stopped))

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [whole + stopped for whole, stopped in done] == [300] * 4, "no thread died of what was thrown behind its block"
    assert not bounds._ACTIVE
