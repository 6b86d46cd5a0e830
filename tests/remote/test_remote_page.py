"""docs/remote.md: its Python runs against a server, and its options are those of the verbs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from remote.scripted_server import said, serving
from sapwood.recipes.hosted import HostedConfig

PAGE = (Path(__file__).parents[2] / "docs" / "remote.md").read_text(encoding="utf-8")


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    with serving(lambda body, _: said("Right below the bark.")) as server:
        exec(code.replace("http://127.0.0.1:8000/v1", server.url), {})  # noqa: S102
    assert capsys.readouterr().out == "Right below the bark. () (7, 3)\n"


def test_it_lists_every_option_with_its_default() -> None:
    listed = dict(re.findall(r"`--(hosted-[a-z-]+) ?([^`]*)`", PAGE.partition("## What happens")[0]))
    fields = {field.name.replace("_", "-"): field.default for field in dataclasses.fields(HostedConfig)}
    assert listed.keys() == fields.keys()
    numbers = {name: default for name, default in fields.items() if isinstance(default, int | float) and default}
    assert {name: float(listed[name]) for name in numbers} == numbers
