"""Stop at a record that cannot be used, or leave it out and say so once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Literal, NoReturn

from defeat.errors import ConfigError, DataError
from defeat.io.text import counted, one_line, quote
from defeat.types import Problem

OnError = Literal["raise", "skip"]

_log = logging.getLogger(__name__)


def check_on_error(on_error: str) -> None:
    """Raise :class:`ConfigError` for any other policy than ``raise`` and ``skip``."""
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")


class ErrorPolicy:
    """Counts what one data set had to change or leave out, by reason, and reports it in a single line.

    Args:
        source: what the messages call the data set, usually its annotation file.
        on_error: ``raise`` stops at the first record that cannot be used; ``skip`` leaves it out.
    """

    def __init__(self, source: str, on_error: OnError) -> None:
        check_on_error(on_error)
        self.source = source
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self._skip = on_error == "skip"
        self._first: str | None = None
        self._rejected: Counter[str] = Counter()
        self._respelt: tuple[str, str] | None = None

    def reject(self, reason: str, message: str) -> None:
        """Count a record that cannot be used, and keep the message of the first one for :meth:`stop`."""
        self._rejected[reason] += 1
        self._first = self._first or one_line(message)

    def stop(self, totals: Mapping[str, int]) -> None:
        """Raise :class:`DataError` for rejected records unless they are to be skipped: then they are counted.

        Args:
            totals: how many records there are of the kind of each reason. Where all of one kind were
                rejected, skipping them is not proposed, for nothing would be left.
        """
        if self._rejected and not self._skip:
            reason, count = next(iter(self._rejected.items()))
            total = totals.get(reason, count)
            kind = reason.partition(" ")[0]
            if count >= total > 1:
                raise DataError(one_line(f"{self._first} (so are all {total} {kind})"))
            more = f"{count} of {total} {kind} are like that; " if count > 1 else ""
            raise DataError(one_line(f"{self._first} ({more}data.on_error=skip leaves such records out)"))
        self.counts.update(self._rejected)
        self._rejected.clear()

    def fatal(self, message: str) -> NoReturn:
        """Raise whatever the policy: the file as a whole cannot be understood."""
        raise DataError(one_line(f"{self.source}: {message}"))

    def add(self, counts: Mapping[str, int]) -> None:
        """Take over counts from a part of the reading."""
        self.counts.update({reason: count for reason, count in counts.items() if count})

    def respelt(self, names: Mapping[str, str]) -> None:
        """Count files that were found by another spelling, see :class:`~defeat.data.paths.Folder`."""
        self.add({"files found by another spelling of their name": len(names)})
        self._respelt = self._respelt or next(iter(names.items()), None)

    def report(self) -> dict[str, int]:
        """Log one warning with all counts, if there are any, and return them."""
        if self.counts:
            parts = ", ".join(counted(count, reason) for reason, count in sorted(self.counts.items()))
            first = f"; the first one skipped: {self._first}" if self._first else ""
            if self._respelt:
                file, name = self._respelt
                first += one_line(f"; the first such file: {quote(file)}, which is called {quote(name)} here")
            _log.warning("%s: %s%s", self.source, parts, first)
        return dict(self.counts)
