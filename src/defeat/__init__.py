"""Distil a large object detector into a small one: DeFeat on PyTorch Lightning."""

__version__ = "0.1.0"
