"""Limits within which a reader has to be done with a hostile file, and a network that nobody may touch."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
import torch

from tests.helpers.trials import MOST_MEMORY, forget_peak, peak_memory, time_limit


@contextmanager
def bounded() -> Iterator[None]:
    """Fail where the block waits, or takes gigabytes."""
    forget_peak()
    before = peak_memory()
    with time_limit():
        yield
    assert peak_memory() - before < MOST_MEMORY // 8


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test that opens a connection."""

    def fail(*arguments: object, **options: object) -> NoReturn:
        pytest.fail(f"the network was touched: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr(torch.hub, "urlopen", fail)
