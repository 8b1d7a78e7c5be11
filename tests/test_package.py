"""What every module and package of src/defeat has to be like."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

import defeat

FOLDER = Path(defeat.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
EXAMPLES = [path for path in FILES if ">>> " in path.read_text(encoding="utf-8")]
PACKAGES = [path for path in FILES if path.name == "__init__.py" and path.parent != FOLDER]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", EXAMPLES, ids=module_name)
def test_the_examples_of_docstrings_run(path: Path) -> None:
    ran = doctest.testmod(importlib.import_module(module_name(path)))
    assert ran.attempted > 0
    assert ran.failed == 0


@pytest.mark.parametrize("path", PACKAGES, ids=module_name)
def test_a_package_names_all_that_it_imports_for_others(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    package = importlib.import_module(module_name(path))
    names = getattr(package, "__all__", [])
    assert sorted(names) == sorted(alias.asname or alias.name for node in imports for alias in node.names)
    assert [name for name in names if not hasattr(package, name)] == []


def parts_imported(path: Path) -> set[str]:
    """Top-level modules and packages that a file imports, inside of functions and for types alone too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    found = {name for node in froms if node.module == "defeat" for name in (a.name for a in node.names)}
    modules = [node.module or "" for node in froms] + [
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    ]
    found |= {module.split(".")[1] for module in modules if module.startswith("defeat.")}
    return found - {"__version__"}


def test_imports_go_down_only() -> None:
    text = (FOLDER.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    order = re.findall(r"^```text\n(.*?)^```", text, re.M | re.S)[0].split()
    for path in FILES:
        part = path.relative_to(FOLDER).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        upward = {name for name in parts_imported(path) if order.index(name) > order.index(part)}
        assert not upward, f"{path.relative_to(FOLDER)} imports what stands above it: {upward}"


def test_the_map_in_contributing_is_complete() -> None:
    text = (
        (FOLDER.parents[1] / "CONTRIBUTING.md")
        .read_text(encoding="utf-8")
        .partition("## Where things are")[2]
    )
    shown = set(re.findall(r"(\w+(?:/|\.py))(?= |$)", text.split("```")[1], re.M))
    assert {f"{path.parent.name}/" for path in PACKAGES if path.parents[1] == FOLDER} <= shown
    assert {path.name for path in FOLDER.glob("[!_]*.py")} <= shown


def test_the_types_are_declared() -> None:
    assert (FOLDER / "py.typed").is_file()
