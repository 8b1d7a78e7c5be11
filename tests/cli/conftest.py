from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.helpers.console import Ended, Run

# of this checkout, rather than of what is installed
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = {name: EntryPoint(name, value, "console_scripts") for name, value in PROJECT["scripts"].items()}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders go where the test is, and the environment decides nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Hydra configures logging for the process: put it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a console script in this process, as its executable would."""

    def run(name: str, *words: str | Path) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", [name, *map(str, words)])
        status = 0
        try:
            SCRIPTS[name].load()()
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return Ended(status, *capfd.readouterr())

    return run
