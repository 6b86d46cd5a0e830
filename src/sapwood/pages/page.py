"""A page's sources and what is to be shown → one HTML file that asks the network for nothing.

What is shown is hostile text: Jinja escapes all of it, and a page's script makes text nodes only, from JSON that no markup can
leave. The page's own policy lets that one script run, known by its hash, and nothing else. `base.html` and `base.css` are what
all pages share. Left out on purpose: anything served, anything loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import cached_property
from importlib.resources import files as packaged
from typing import Any

import jinja2
import orjson
from markupsafe import Markup


class Pages:
    """The pages whose sources lie in one folder of the package, such as `evaluate/report_page`, and the filters they use."""

    def __init__(self, folder: str, **filters: Callable[..., str]) -> None:
        self._folder, self._filters = folder, filters

    def render(self, template: str, *, styles: tuple[str, ...] = ("page.css",), script: str = "", **shown: Any) -> str:
        """The page (or the part of one) as text. `styles` and `script` are files of the folder; a base style goes before them."""
        text = self._source(script) if script else ""
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        style = "".join(map(self._source, ("base.css", *styles)))
        return self._templates.get_template(template).render(
            **shown, style=Markup(style), script=Markup(text), script_hash=f"sha256-{digest}"
        )

    @cached_property
    def _templates(self) -> jinja2.Environment:
        environment = jinja2.Environment(
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            loader=jinja2.FunctionLoader(self._source),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(self._filters)
        return environment

    def _source(self, name: str) -> str:
        folder = "pages" if name in ("base.html", "base.css") else self._folder
        return packaged("sapwood").joinpath(*folder.split("/"), name).read_text(encoding="utf-8")


def json_for_script(content: Any) -> Markup:
    """JSON that cannot end the script element it stands in, nor open a comment there, whatever texts it holds."""
    text = orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS, default=str).decode()
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
