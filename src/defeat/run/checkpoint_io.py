"""Write checkpoints to the disk, whole or not at all."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from defeat.errors import StorageError
from defeat.io.atomic_write import cannot_write, replacing


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's, but a checkpoint is there whole or not at all, and a full disk is said in one line.

    Lightning's own writes a temporary file in the system's temporary folder, moves it over the old one, which
    copies where that folder is on another disk, and does not wait for the disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | PathLike[str], storage_options: Any = None
    ) -> None:
        """Write to a file beside ``path``, then give it the name.

        Raises:
            StorageError: it cannot be written; the checkpoint that had the name still has it.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are written to plain files: storage_options have no meaning")
        target = Path(path)
        try:
            with replacing(target) as part, part.open("wb") as file:
                torch.save(checkpoint, file)
        except (StorageError, RuntimeError) as error:
            failed = _system_error(error)
            if failed is None:
                raise
            kept = "; the one before it is still there" if target.is_file() else ""
            raise StorageError(f"checkpoint {cannot_write(target, failed)}{kept}") from error


def _system_error(error: BaseException) -> OSError | None:
    """Find the operating system's error, which torch's writer hides when it closes its archive."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found
