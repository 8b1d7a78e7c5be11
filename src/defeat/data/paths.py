"""Paths that annotation files give: kept inside their root, and looked up without a system call for each."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from defeat.errors import ConfigError, DataError
from defeat.io.safe_read import is_dir, is_file
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
    if not _is_possible(name):
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


def _is_possible(name: str) -> bool:
    """JSON can spell half characters (surrogates), which no file system takes."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return len(name) <= _LONGEST and "\0" not in name


def files_below(folder: Path) -> list[str]:
    """List all files below a folder, sorted, relative to it and with ``/``; hidden ones are left out."""
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        names += [f"{prefix}{name}" for name in files if not name.startswith(".")]
    return sorted(names)


class Folder:
    """The files below one root; each folder is listed once, when first asked for.

    Listing costs one system call for thousands of names where ``Path.exists`` costs one for each, which
    counts for 118,000 images on a network disk. Only links are followed one by one.

    A name that is not there may be spelt otherwise than the file that is meant, see :func:`_spellings`. The
    file is taken if it is the only one that fits, and :attr:`respelt` tells so.

    Args:
        root: the folder.
        names: all names that will be looked up, if they are known: a file that one of them names exactly is
            not taken for another one.
    """

    def __init__(self, root: Path, names: Iterable[str] = ()) -> None:
        self.root = root
        self.names = set(names)
        self.respelt: dict[str, str] = {}
        """Name of a file relative to the root, to the name by which it was looked up in vain."""
        self._listed: dict[str, dict[str, bool]] = {}
        self._by_key: dict[str, dict[str, list[str]]] = {}
        self._by_stem: dict[str, dict[str, list[str]]] = {}
        self._subfolders: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path:
        """Return the path of an existing file; raises like :meth:`locate`."""
        return self.root / self.locate(name)

    def locate(self, name: str) -> str:
        """Return the name of an existing file relative to the root, and make no path, which takes longer.

        Raises:
            DataError: see :func:`resolve_inside`; or no file fits, or several do.
        """
        refusal = None
        try:
            check_relative(self.root, name)
        except DataError as error:
            if not _is_possible(name):
                raise
            refusal = error
        else:
            parent, file = _split(name)
            is_link = self._files(parent).get(file)
            if is_link is not None:
                if is_link and not is_file(resolve_inside(self.root, name)):
                    raise DataError(f"{_quoted(name)} in {self.root} is a link to no file")
                return name
        return self._respell(name, refusal)

    def alike(self, stem: str) -> list[str]:
        """Return the files called like ``stem``, in any case and with any suffix, relative to the root."""
        check_relative(self.root, stem)
        parent, last = _split(stem)
        if parent not in self._by_stem:
            files = sorted(self._files(parent))
            self._by_stem[parent] = _grouped(files, parent, lambda name: _key(PurePosixPath(name).stem))
        return self._by_stem[parent].get(_key(last), [])

    def _respell(self, name: str, refusal: DataError | None) -> str:
        for spelling in _spellings(name):
            fitting = [file for file in self._fitting(spelling) if file not in self.names]
            if len(fitting) > 1:
                shown = " and ".join(map(_quoted, fitting[:2]))
                raise DataError(f"no file {_quoted(name)} in {self.root}, and {shown} both fit: rename one")
            for file in fitting:
                if self.respelt.setdefault(file, name) != name:
                    given = f"{_quoted(self.respelt[file])} and {_quoted(name)}"
                    raise DataError(
                        f"{given} both fit the one file {_quoted(file)} in {self.root}: correct one"
                    )
                return file
        raise refusal or DataError(
            f"no file {_quoted(name)} in {self.root}, nor with other case, Unicode form, %, \\ or folders"
        )

    def _fitting(self, name: str) -> list[str]:
        """Return the files whose names differ from this one in case and Unicode form at most."""
        try:
            check_relative(self.root, name)
            *folders, last = PurePosixPath(name).parts
            parents = [""]
            for folder in folders:
                parents = [sub for parent in parents for sub in self._below(parent).get(_key(folder), [])]
            files = [file for parent in parents for file in self._keyed(parent).get(_key(last), [])]
            return [file for file in files if is_file(resolve_inside(self.root, file))]
        except DataError:
            return []

    def _keyed(self, parent: str) -> dict[str, list[str]]:
        if parent not in self._by_key:
            self._by_key[parent] = _grouped(sorted(self._files(parent)), parent, _key)
        return self._by_key[parent]

    def _below(self, parent: str) -> dict[str, list[str]]:
        """Return the folders in one folder, by the key of their names."""
        if parent not in self._subfolders:
            folder = resolve_inside(self.root, parent) if parent else self.root
            names = sorted(entry.name for entry in folder.iterdir() if is_dir(entry))
            self._subfolders[parent] = _grouped(names, parent, _key)
        return self._subfolders[parent]

    def _files(self, parent: str) -> dict[str, bool]:
        """List the names in one folder, each with whether it is a link; empty where there is no folder."""
        if parent not in self._listed:
            folder = resolve_inside(self.root, parent) if parent else self.root
            self._listed[parent] = _scan(folder)
        return self._listed[parent]


def _spellings(name: str) -> Iterator[str]:
    """Yield what a name that is no file may stand for, from the nearest to the last part alone.

    Annotation tools write paths of Windows, quote names as in addresses, and put folders or servers in front
    that are not there any more. Whatever is yielded is looked up in any case and Unicode form: macOS stores
    an umlaut as two characters.
    """
    slashed = name.replace("\\", "/")
    yield from dict.fromkeys((name, slashed, unquote(name), unquote(slashed)))
    last = re.split(r"/|\?d=", unquote(slashed).rstrip("/"))[-1]  # ?d= is of Label Studio's local files
    yield last
    if re.match("[0-9a-f]{8}-.", last):  # Label Studio's mark of an upload
        yield last[9:]


def _key(name: str) -> str:
    """Return what names have in common that differ in case, Unicode form and outer blanks alone."""
    return unicodedata.normalize("NFC", name.strip().casefold())


def _grouped(names: Iterable[str], parent: str, key: Callable[[str], str]) -> dict[str, list[str]]:
    """Group names by a key; they become relative to the root by their parent."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in names:
        grouped[key(name)].append(f"{parent}/{name}" if parent else name)
    return grouped


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
