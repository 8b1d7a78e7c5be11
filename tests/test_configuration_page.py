"""docs/configuration.md has every key of conf/ with the value and the comment that its file gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from defeat.config import conf_dir
from tests.helpers.tools import load_tool

TOOL = load_tool("configuration_page")
SECTIONS = dict(re.findall(r"^##+ (\S+(?: \w+)?)\n(.*?)(?=^##|\Z)", TOOL.render(), re.M | re.S))

FILES = [path for path in sorted(conf_dir().rglob("*.yaml")) if path.parent.name != "experiment"]
NOT_SHOWN = ("defaults", "_partial_", "_convert_", "help")


def values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_page_in_docs_is_what_the_files_say() -> None:
    assert TOOL.TARGET.read_text(encoding="utf-8") == TOOL.render(), "run make configuration-page"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_stands_under_its_file(path: Path) -> None:
    group = str(path.parent.relative_to(conf_dir()))
    name = f"defeat-{path.stem.replace('_', ' ')}" if group == "." else f"{group}={path.stem}"
    rows = re.findall(r"^\| `([^`]+)` \| `?(.*?)`? \|", SECTIONS[name], re.M)
    shown = {key: value.replace("\\|", "|") for key, value in rows}
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    for key, value in values(OmegaConf.to_container(config)):
        parts = key.split(".")
        if set(parts) & set(NOT_SHOWN) or (group == "." and parts[0] == "hydra"):
            continue
        full = min((full for full in shown if f".{full}".endswith(f".{key}")), key=len)
        assert OmegaConf.to_container(OmegaConf.create(f"x: {shown[full]}")) == {"x": value}, full


def test_comments_beside_and_above_a_key_are_told() -> None:
    keys = TOOL.read_keys(
        "# head\n"
        "a: 1   # of a\n"
        "b:     # of all below\n"
        "  # above c,\n"
        "  # in two lines\n"
        '  c: "x # y"  # beside\n'
        "  d: {e: [1, 2]}\n"
        "  f:\n"
        "    - 1\n"
        "    - 2\n"
    )
    assert keys == [
        ("a", "1", "of a"),
        ("b", "", "of all below"),
        ("b.c", '"x # y"', "above c, in two lines beside"),
        ("b.d", "{e: [1, 2]}", ""),
        ("b.f", "[1, 2]", ""),
    ]
