"""The libraries of the extra ``export``: ONNX graphs and their runtime."""

from __future__ import annotations

from importlib.util import find_spec

from defeat.errors import ConfigError


def require_extra(purpose: str, *packages: str) -> None:
    """Refuse what needs packages of the extra, where they are missing.

    Args:
        purpose: the key or file that needs them, for the message.
        packages: their names.

    Raises:
        ConfigError: one of them is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise ConfigError(f"{purpose} needs an extra ({names} missing): pip install 'defeat[export]'")
