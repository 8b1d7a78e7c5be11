"""Which keys of a configuration are weights of losses, as the classes of its terms say."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping
from typing import Any, NamedTuple

from defeat.distill.terms import Term
from defeat.errors import ConfigError


class WeightKey(NamedTuple):
    """The configuration's key of a loss's weight; as text, it is what the command line takes."""

    term: str
    argument: str

    def __str__(self) -> str:
        return f"distiller.terms.{self.term}.{self.argument}"


def weight_keys(distiller: Mapping[str, Any] | None) -> list[WeightKey]:
    """List the keys of all weights in the ``distiller`` entry of a configuration, without building it.

    The classes that the terms' ``_target_`` names are imported: ask only for the configuration of the run
    that is to be started, never for one that came with a file.

    Raises:
        ConfigError: a term's ``_target_`` is not a class derived from :class:`~defeat.distill.Term`.
    """
    terms = (distiller or {}).get("terms") or {}
    return [
        WeightKey(name, argument)
        for name, term in terms.items()
        if term
        for argument in _term_class(name, term["_target_"]).weight_keys.values()
    ]


def _term_class(name: str, target: str) -> type[Term]:
    term = pydoc.locate(target)
    if not (isinstance(term, type) and issubclass(term, Term)):
        raise ConfigError(f"distiller.terms.{name}: {target} is not a class derived from defeat.distill.Term")
    return term
