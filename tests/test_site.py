"""The documentation site is built as `make docs` does it, and looked through: nothing in it leads nowhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("zensical")
pytestmark = pytest.mark.slow  # CI runs it

ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """The addresses that a page names, the anchors that it has, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag != "a" and (source := values.get("src") or values.get("href")):
            self.loaded.append(source)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")  # Zensical takes no link to it
    for name in ("src", "tools"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "mkdocs.yml", folder)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "tools"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    listed = set(re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    docs = ROOT / "docs"
    assert listed == {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    for page in listed - {"README.md"}:
        assert site.joinpath(page).with_suffix(".html").is_file()


def test_every_link_and_picture_of_the_site_is_there(site: Path) -> None:
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    dead = []
    for path, page in pages.items():
        for link in {*page.links, *page.loaded}:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(address.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                dead.append(f"{path.name}: {link}")
    assert not dead


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not [source for source in Page(path).loaded if urlsplit(source).netloc], path.name


@pytest.mark.parametrize("name", ["data", "detectors", "distill", "evaluation", "predict", "visual"])
def test_the_api_has_what_a_package_exports(site: Path, name: str) -> None:
    path = site / "api" / f"{'report' if name == 'visual' else name}.html"
    shown = {anchor.rpartition(".")[2] for anchor in Page(path).anchors if anchor.startswith("defeat.")}
    package = import_module(f"defeat.{name}")
    assert {each for each in package.__all__ if callable(getattr(package, each))} <= shown
    assert not re.search(r":(class|func|attr|mod):", path.read_text(encoding="utf-8"))
