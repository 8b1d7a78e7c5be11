"""``--version`` of the console scripts."""

from __future__ import annotations

from importlib.metadata import version

from defeat import __version__


def version_text() -> str:
    """Name the project's version and those of the libraries it stands on, without importing them."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightning"))
    return f"defeat {__version__} ({libraries})"
