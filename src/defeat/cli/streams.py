"""Standard output and standard error that end no run, whatever becomes of their reader."""

from __future__ import annotations

import errno
import io
import locale
import logging
import os
import sys
from contextlib import suppress
from typing import Any

from defeat.io.text import printable

GONE = (errno.EPIPE, errno.EIO)
"""Errors of a stream whose reader has ended: a pipe's other end, or a terminal."""


class _PatientFile(io.FileIO):
    """A file descriptor that goes on into nothing when its reader has ended."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())  # for libraries in C and further processes too
            os.close(nothing)
            return memoryview(data).nbytes


class _PrintableRecord(logging.LogRecord):
    """A log entry in which names from files, of classes for one, cannot change the terminal."""

    def getMessage(self) -> str:  # noqa: N802 - Python's name
        return printable(super().getMessage(), keep="\n\t")


def prepare_streams() -> None:
    """Make standard output and standard error ready for anything that a run may print.

    A reader that ends, as ``| head`` does, or a stream that was closed from the start, does not end the run;
    characters that the stream's encoding lacks are written as escapes; and files of libraries that name no
    encoding are written in UTF-8 where the locale is plain C. Streams that something else has put in the
    place of Python's own stay as they are.
    """
    logging.setLogRecordFactory(_PrintableRecord)
    with suppress(locale.Error):
        if not locale.getencoding().lower().startswith("utf"):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    # A free descriptor below 3 would be given to the next file that is opened, and then be printed into.
    while (free := os.open(os.devnull, os.O_RDWR)) < 3:
        continue
    os.close(free)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            encoding = stream.encoding if stream else "utf-8"
            lines = name == "stderr" or bool(stream and stream.line_buffering)
            file = io.BufferedWriter(_PatientFile(descriptor, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=lines))
