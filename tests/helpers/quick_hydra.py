"""Hydra that reads a file once in a process, and once merges the same files in the same order.

Half of the suite's time went into compositions, and most of theirs goes into that. What depends on the
command line is done each time.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType


@contextmanager
def quick_hydra() -> Iterator[None]:
    """Remember files by path and time of change, and merges by the files that they merge."""
    load, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    kept: dict[Any, bytes] = {}

    def once(key: Any, make: Callable[[], Any]) -> Any:
        if key not in kept:
            kept[key] = pickle.dumps(make())
        return pickle.loads(kept[key])  # in a twentieth of the time of a deepcopy

    def load_once(self: ConfigRepository, config_path: str) -> Any:
        return once(_file(self, config_path), lambda: load(self, config_path))

    def merge_once(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any) -> Any:
        files = tuple(_file(repo.delegate, default.config_path) for default in defaults)
        return once((repr(defaults), files), lambda: merge(self, defaults, repo))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
        yield


def _file(repository: ConfigRepository, name: str | None) -> tuple[object, ...]:
    """What is another where a repository finds another file, or the same one changed."""
    source = repository._find_object_source(name or "", ObjectType.CONFIG)
    if source is None:
        return (name,)
    if source.scheme() == "structured":  # what the program registers, which a command changes
        return name, pickle.dumps(source.load_config(name or ""))
    path = Path(source.path, source._normalize_file_name(name or ""))
    state = path.stat() if path.is_file() else None  # none of what lies within packages
    return name, source.provider, str(path), state and (state.st_ino, state.st_size, state.st_mtime_ns)
