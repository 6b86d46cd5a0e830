"""Sapwood fine-tunes language models and proves that they got better."""

__version__ = "0.1.0"
