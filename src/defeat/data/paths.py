"""Paths that annotation files give: kept inside their root, and looked up without a system call for each."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

from defeat.errors import ConfigError, DataError
from defeat.io.safe_read import is_file
from defeat.io.text import quote

_LONGEST = 4096  # characters; no operating system has longer paths
_SHOWN = 160
_PLAIN = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*", re.ASCII)


def join(root: str | os.PathLike[str], path: str | os.PathLike[str], name: str) -> Path:
    """Join a path of the user to a root of the user, wherever they lead.

    Raises:
        ConfigError: one of them is no path; ``name`` says what it was given for.
    """
    for value, called in ((root, "root"), (path, name)):
        if not isinstance(value, str | os.PathLike):
            raise ConfigError(f"{called} must be a path, got {quote(value)}")
    return Path(root) / path


def resolve_inside(root: Path, name: str) -> Path:
    """Join a name from an annotation file to its root, following links, and refuse whatever leads outside.

    Args:
        root: folder that may be read; it may itself be a link.
        name: relative path with ``/``, as the annotation gives it. It need not exist.

    Returns:
        The joined path, links resolved.

    Raises:
        DataError: the name is empty, absolute, holds ``..``, or a link on the way leads outside the root.
    """
    check_relative(root, name)
    real_root = root.resolve()
    try:
        real = (real_root / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise DataError(f"path {_quoted(name)} cannot be followed below {root}: {error}") from error
    if not real.is_relative_to(real_root):
        raise DataError(f"path {_quoted(name)} leads outside its root {root} through a link; refused")
    return real


def check_relative(root: Path, name: str) -> None:
    """Refuse, from its spelling alone, a name that could leave the root on any operating system."""
    if _is_plain(name):  # nearly always, and quick
        return
    if len(name) > _LONGEST or "\0" in name or not _can_be_encoded(name):
        raise DataError(f"path {_quoted(name)} is not a file name below {root}")
    windows = PureWindowsPath(name)  # splits at both slashes, and knows drives
    if not windows.parts:
        raise DataError(f"path {_quoted(name)} is not a file name below {root}")
    if windows.anchor or ".." in windows.parts:
        raise DataError(
            f"path {_quoted(name)} leads outside its root {root}; give it relative to the root, without '..'"
        )


def _is_plain(name: str) -> bool:
    """Tell whether no operating system can read a name in two ways, as it could with dots in front."""
    return len(name) <= _LONGEST and _PLAIN.fullmatch(name) is not None


def _quoted(name: str) -> str:
    return quote(name, _SHOWN)


def _can_be_encoded(name: str) -> bool:
    """JSON can spell half characters (surrogates), which no file system takes."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


class Folder:
    """The files below one root; each folder is listed once, when first asked for.

    Listing costs one system call for thousands of names where ``Path.exists`` costs one for each, which
    counts for 118,000 images on a network disk. Only links are followed one by one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, dict[str, bool]] = {}
        self._by_stem: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path:
        """Return the path of an existing file.

        Raises:
            DataError: see :func:`resolve_inside`; or there is no such file.
        """
        self.check(name)
        return self.root / name

    def check(self, name: str) -> None:
        """Raise what :meth:`find` raises, but make no path, which takes longer than the check."""
        check_relative(self.root, name)
        parent, file = _split(name)
        is_link = self._files(parent).get(file)
        if is_link is None:
            raise DataError(f"no file {_quoted(name)} in {self.root}")
        if is_link and not is_file(resolve_inside(self.root, name)):
            raise DataError(f"{_quoted(name)} in {self.root} is a link to no file")

    def alike(self, stem: str) -> list[str]:
        """Return the files called like ``stem``, in any case and with any suffix, relative to the root."""
        check_relative(self.root, stem)
        parent, last = _split(stem)
        if parent not in self._by_stem:
            by_stem: dict[str, list[str]] = defaultdict(list)
            for name in sorted(self._files(parent)):
                by_stem[PurePosixPath(name).stem.lower()].append(f"{parent}/{name}" if parent else name)
            self._by_stem[parent] = by_stem
        return self._by_stem[parent].get(last.lower(), [])

    def _files(self, parent: str) -> dict[str, bool]:
        """List the names in one folder, each with whether it is a link; empty where there is no folder."""
        if parent not in self._listed:
            folder = resolve_inside(self.root, parent) if parent else self.root
            self._listed[parent] = _scan(folder)
        return self._listed[parent]


def _split(name: str) -> tuple[str, str]:
    """Return the folder of a relative path, empty for the root itself, and its last part."""
    parent, _, last = (name if _is_plain(name) else str(PurePosixPath(name))).rpartition("/")
    return parent, last


def _scan(folder: Path) -> dict[str, bool]:
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name: entry.is_symlink()
                for entry in entries
                if entry.is_symlink() or entry.is_file(follow_symlinks=False)
            }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from error
