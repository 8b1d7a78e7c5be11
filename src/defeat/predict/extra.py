"""The library `supervision`, of the extra ``predict``: tiles and videos."""

from __future__ import annotations

import warnings
from types import ModuleType

from defeat.errors import ConfigError


def supervision(purpose: str) -> ModuleType:
    """Import the library.

    Args:
        purpose: the key or file that needs it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    with warnings.catch_warnings():
        # Without OpenCV it uses PyAV and NumPy, which is all that is wanted here.
        warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
        try:
            import supervision
        except ImportError as error:
            raise ConfigError(f"{purpose} needs an extra: pip install 'defeat[predict]'") from error
    return supervision
