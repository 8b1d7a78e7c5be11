from __future__ import annotations

import gc
from pathlib import Path

import pytest

from defeat.gc_pause import pause_gc
from defeat.io.safe_read import load_json


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_is_left_as_it_was(fails: bool, collects: bool) -> None:
    try:
        if not collects:
            gc.disable()
        try:
            with pause_gc():
                assert not gc.isenabled()
                if fails:
                    raise ValueError
        except ValueError:
            assert fails
        assert gc.isenabled() == collects
    finally:
        gc.enable()


def test_json_is_parsed_without_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, {}]')
    during: list[bool] = []
    load_json(tmp_path / "a.json", lambda item: during.append(gc.isenabled()))
    assert during == [False, False]
