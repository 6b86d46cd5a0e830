"""Self-contained HTML pages: one head, one look, one rule of safety for all of them."""

from sapwood.pages.page import Pages, json_for_script

__all__ = ["Pages", "json_for_script"]
