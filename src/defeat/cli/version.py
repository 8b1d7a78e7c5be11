"""``--version`` of the console scripts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from defeat import __version__

LIBRARIES = ("torch", "torchvision", "lightning")


def version_text() -> str:
    """Name the project's version and those of the libraries it stands on, without importing them."""
    return f"defeat {__version__} ({', '.join(f'{name} {_installed(name)}' for name in LIBRARIES)})"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"
