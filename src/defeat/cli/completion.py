"""What Hydra's shell completion lacks: groups under another name, such as ``detector@student=``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import yaml  # type: ignore[import-untyped]

from defeat.config import conf_dir


def complete(words: Sequence[str], config_name: str) -> None:
    """Print further lines for ``-sc``, before those of Hydra: of the script to install, or of choices.

    Args:
        words: the command line's words.
        config_name: the primary configuration.
    """
    if not {"-sc", "--shell-completion"} & {*words}:
        return
    if "install=bash" in words:
        print("COMP_WORDBREAKS=${COMP_WORDBREAKS//@}")  # as Hydra does for =
    if any(word.startswith("query=") for word in words):
        line = os.environ.get("COMP_LINE", "")
        print(*_choices(line.rpartition(" ")[2], config_name))


def _choices(word: str, config_name: str) -> Iterator[str]:
    content = yaml.safe_load((conf_dir() / f"{config_name}.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    for key in (key for entry in entries for key in entry if "@" in key):
        names = sorted(path.stem for path in (conf_dir() / key.partition("@")[0]).glob("*.yaml"))
        every = [f"{key}={name}" for name in names] if word.startswith(f"{key}=") else [f"{key}="]
        yield from (choice for choice in every if choice.startswith(word))
