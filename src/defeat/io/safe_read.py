"""Files that strangers made: opened without waiting, read without surprises."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from defeat.gc_pause import pause_gc
from defeat.io.text import quote


def is_file(path: Path) -> bool:
    """Tell whether there is such a file; False also for what cannot be the name of one."""
    try:
        return path.is_file()
    except OSError:  # too long, no right to look
        return False


def is_dir(path: Path) -> bool:
    """Tell whether there is such a folder; False also for what cannot be the name of one."""
    try:
        return path.is_dir()
    except OSError:
        return False


def open_regular(path: str | os.PathLike[str], most: int | None = None) -> BinaryIO:
    """Open a file for reading, but no pipe, socket or device, which may wait or go on for ever.

    Args:
        path: a regular file, or a link to one.
        most: number of bytes that it may have.

    Raises:
        OSError: with a ``strerror``: it cannot be opened, is no regular file, or is larger.
    """
    try:
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - handed on; Path.open has no opener
    except ValueError as error:  # a zero byte, or a character that file names cannot have
        raise OSError(errno.EINVAL, f"no possible file name ({error})") from error
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file (a pipe, a socket or a device)")
    if most is not None and status.st_size > most:
        file.close()
        raise OSError(errno.EFBIG, f"{status.st_size} bytes are more than such a file can have ({most})")
    return cast(BinaryIO, file)


def read_regular(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """Read a file whole; arguments and errors as for :func:`open_regular`."""
    with open_regular(path, most) as file:
        try:
            return file.read()
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "larger than the memory") from error


def load_json(path: str | os.PathLike[str], hook: Callable[[dict[str, Any]], Any] = lambda item: item) -> Any:
    """Parse a JSON file in UTF-8, with or without a byte order mark.

    Args:
        path: see :func:`open_regular`.
        hook: given every object, from the inside out; what it returns stands in the object's place.

    Raises:
        OSError: see :func:`open_regular`.
        ValueError: no JSON, nested too deep, or an object with a key twice, of which Python alone would keep
            the last without a word.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        item = dict(pairs)
        if len(item) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in item if keys.count(key) > 1)
            named = f" (id {quote(item['id'])})" if "id" in item else ""
            raise ValueError(f"key {quote(twice)} is given twice in one object{named}")
        return hook(item)

    content = read_regular(path).decode("utf-8-sig")
    try:
        with pause_gc():
            return json.loads(content, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):
            raise ValueError("it holds a whole number of thousands of digits") from error
        raise
    except MemoryError as error:
        raise OSError(errno.ENOMEM, "larger than the memory") from error


def _open_at_once(path: str, flags: int) -> int:
    # a pipe would be waited for until somebody writes; for regular files it means nothing
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
