"""Folders that belong to one run: made for it, and never one in which something lies already."""

from __future__ import annotations

from pathlib import Path

from defeat.errors import ConfigError, StorageError
from defeat.io.atomic_write import cannot_write


def make_free_folder(wanted: Path) -> Path:
    """Make ``wanted``, or the first of ``wanted_2``, ``wanted_3`` ... that is free.

    The folder is the caller's alone, however many processes ask for it at the same moment.

    Raises:
        StorageError: no folder can be made there.
    """
    number = 1
    folder = wanted
    while not _make(folder):
        number += 1
        folder = wanted.with_name(f"{wanted.name}_{number}")
    return folder


def claim_folder(folder: Path, asked: str, mark: str | None) -> None:
    """Take a folder that the user named: one that is new, or empty.

    Args:
        folder: the folder that was named.
        asked: the words that named it, for messages.
        mark: name of a folder to make in it, so that one alone gets an empty folder of several processes that
            ask at the same moment; None makes none.

    Raises:
        ConfigError: something lies in it, or it is no folder.
        StorageError: it cannot be made.
    """
    if not _make(folder):
        refuse_used_folder(folder, asked)
    if mark is not None and not _make(folder / mark):
        raise ConfigError(f"{asked}: another run has just taken this folder; name a new one")


def refuse_used_folder(folder: Path, asked: str) -> None:
    """Refuse a folder that the user named unless it is new or empty.

    Args:
        folder: the folder that was named.
        asked: the words that named it, for messages.

    Raises:
        ConfigError: something lies in it, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{asked}: that is a file; name a new folder")
    if folder.exists() and (there := sorted(path.name for path in folder.iterdir())):
        raise ConfigError(f"{asked}: there is {there[0]} already; name a new folder, or an empty one")


def refuse_overwriting(*paths: Path) -> None:
    """Stop before work is done whose results would go over files that are there.

    Raises:
        ConfigError: one of the files exists.
    """
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} exists already: choose another folder by run_dir=<folder>")


def put_aside(path: Path) -> None:
    """Give a file, if there is one, a name with a number that is free, so that its own can be used again.

    Raises:
        StorageError: it cannot be renamed.
    """
    number = 1
    while (aside := path.with_stem(f"{path.stem}_{number}")).exists():
        number += 1
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(cannot_write(aside, error)) from error


def _make(folder: Path) -> bool:
    """Make a folder; False where there is something of its name."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(cannot_write(folder, error)) from error
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(cannot_write(folder, error)) from error
    return True
