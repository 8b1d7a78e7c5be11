"""Distil a large object detector into a small one: DeFeat on PyTorch Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defeat.predict import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: the commands start without it."""
    if name == "load":
        from defeat.predict import load

        return load
    raise AttributeError(f"module 'defeat' has no attribute {name!r}")
