"""The weight files that this package ships, and where a source of weights would lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "assets"
"""The package's own weights, each ``<name>.safetensors``."""


def shipped_weights() -> dict[str, Path]:
    """Weight files of this package, by the names that configurations give them."""
    return {path.stem: path for path in sorted(ASSETS.glob("*.safetensors"))}


def weight_path(source: str | Path) -> Path:
    """Where a source would lie if it is a file, which an enum is not.

    The name of a shipped file means that file whatever lies in the working folder, so that a configuration
    means the same everywhere; ``./<name>`` is the file of the folder.
    """
    shipped = shipped_weights().get(source) if isinstance(source, str) else None
    if shipped:
        return shipped
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~name of no user
        return Path(source)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
