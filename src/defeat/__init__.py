"""Distil a large object detector into a small one: DeFeat on PyTorch Lightning."""

from importlib.metadata import version

__version__ = version("defeat")
