"""The tally of a session, told at its end."""

from __future__ import annotations

import pytest

from tests.helpers.trials import Tally

TALLY = pytest.StashKey[Tally]()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash.setdefault(TALLY, Tally())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash.get(TALLY, None)
    if tally is not None and tally.total:
        terminalreporter.section("inputs tried")
        for line in tally.lines():
            terminalreporter.write_line(line)
