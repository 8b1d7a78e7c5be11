"""The tally of a session, told at its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.trials import Tally

TALLY = pytest.StashKey[Tally]()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    found = request.config.stash.setdefault(TALLY, Tally())
    yield found
    if "full" in request.node.name:
        found.full.add(request.node.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What counts the inputs comes after all that try them."""
    items.sort(key=lambda item: item.name == "test_enough_inputs_were_tried")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash.get(TALLY, None)
    if tally is not None and tally.total:
        terminalreporter.section("inputs tried")
        for line in tally.lines():
            terminalreporter.write_line(line)
