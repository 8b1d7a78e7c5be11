"""Hydra that does once in a process what depends on its files and on the choices between them alone.

Half of the suite's time went into compositions, and nearly all of theirs goes into that.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra._internal import config_loader_impl, config_repository
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override


@contextmanager
def quick_hydra() -> Iterator[None]:
    """Remember files, lists of defaults and what they merge to, until a file is another."""
    load, listing = ConfigRepository.load_config, config_loader_impl.create_defaults_list
    merge = config_loader_impl.ConfigLoaderImpl._compose_config_from_defaults_list
    kept: dict[Any, bytes] = {}

    def once(key: Any, make: Callable[[], Any]) -> Any:
        if key not in kept:
            kept[key] = pickle.dumps(make())
        return pickle.loads(kept[key])  # in a twentieth of the time of a deepcopy

    def load_once(self: ConfigRepository, config_path: str) -> Any:
        return once(_file(self, config_path), lambda: load(self, config_path))

    def list_once(repo: Any, config_name: str | None, overrides_list: list[Override], **how: bool) -> Any:
        values = Overrides(repo, overrides_list).config_overrides
        choices = [override for override in overrides_list if override not in values]
        key = config_name, _folders(repo), tuple(o.input_line for o in choices), tuple(how.items())
        found = once(key, lambda: listing(repo, config_name, choices, **how))
        found.config_overrides = values
        return found

    def merge_once(self: Any, defaults: list[ResultDefault], repo: Any) -> Any:
        files = tuple(_file(repo.delegate, default.config_path) for default in defaults)
        return once((repr(defaults), files), lambda: merge(self, defaults, repo))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_once)
        # The list of a repository's sources is replaced, never changed.
        patch.setattr(config_repository, "copy", SimpleNamespace(deepcopy=copy.copy))
        patch.setattr(config_loader_impl, "create_defaults_list", list_once)
        patch.setattr(config_loader_impl.ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
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


def _folders(repository: Any) -> tuple[object, ...]:
    """What is another where a file in a folder of configurations is."""
    folders = [Path(source.path) for source in repository.get_sources() if source.scheme() == "file"]
    files = [(path, path.stat()) for folder in folders for path in sorted(folder.rglob("*.yaml"))]
    return *map(str, folders), *((str(path), state.st_size, state.st_mtime_ns) for path, state in files)
