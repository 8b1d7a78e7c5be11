"""That the full run tried as many inputs as it is said to try."""

from __future__ import annotations

import pytest

from tests.helpers.trials import WANTED, Tally


@pytest.mark.slow
def test_enough_inputs_were_tried(request: pytest.FixtureRequest, tally: Tally) -> None:
    asked_for = {item.nodeid for item in request.session.items if item.name.endswith("[full]")}
    if len({name.partition("::")[0] for name in asked_for}) < 6 or asked_for != tally.full:
        pytest.skip("counts where all full runs were asked for, in this process")
    assert tally.total >= WANTED
