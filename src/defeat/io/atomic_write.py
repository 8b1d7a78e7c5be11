"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from defeat.errors import StorageError

REASONS = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EFBIG: "the file would be larger than this process or file system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
}
"""The meaning of an error of the operating system, by its number, in words for the user."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, and put what was written there in the place of ``path``.

    The new content is on the disk before it gets its name, so that a crash, a kill or a power failure at any
    moment leaves the old file or the new one. A process that is killed leaves ``<name>.part`` behind, which
    the next write of the same file takes over; two processes must not write one file at a time.

    Raises:
        StorageError: the file cannot be written; the old one is as it was.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part)
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise StorageError(cannot_write(path, error)) from error
        raise
    with suppress(OSError):  # the file is there; not every system can open a folder, or sync one
        _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) by way of :func:`replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def cannot_write(path: object, error: OSError) -> str:
    """Say in one line why a file could not be written."""
    reason = REASONS.get(error.errno or 0, error.strerror or str(error))
    return f"{path} cannot be written: {reason}"


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
