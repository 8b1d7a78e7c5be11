import os
from pathlib import Path

import pytest

from defeat.data import resolve_inside
from defeat.data.paths import Folder
from defeat.errors import DataError

LEADING_OUT = [
    "../secret.jpg",
    "sub/../../secret.jpg",
    "/etc/passwd",
    "..",
    "a\\..\\..\\b",
    "C:\\x.jpg",
    "\\\\host\\x",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("images/a.jpg", "images/sub/b.jpg", "secret.jpg"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "images"


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_that_lead_outside_are_refused(root: Path, name: str) -> None:
    for look_up in (lambda: resolve_inside(root, name), lambda: Folder(root).find(name)):
        with pytest.raises(DataError, match="leads outside") as caught:
            look_up()
        assert repr(name) in str(caught.value)
        assert str(root) in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "a\0.jpg"])
def test_names_of_no_file_are_refused(root: Path, name: str) -> None:
    for look_up in (lambda: resolve_inside(root, name), lambda: Folder(root).find(name)):
        with pytest.raises(DataError, match="not a file name"):
            look_up()


@pytest.mark.parametrize("target", ["secret.jpg", "images/../secret.jpg"])
def test_a_link_out_is_refused(root: Path, target: str) -> None:
    (root / "link.jpg").symlink_to(root.parent / target)
    for look_up in (lambda: resolve_inside(root, "link.jpg"), lambda: Folder(root).find("link.jpg")):
        with pytest.raises(DataError, match=r"leads outside its root .* through a link"):
            look_up()


def test_a_folder_that_is_a_link_out_is_refused(root: Path) -> None:
    (root / "up").symlink_to(root.parent)
    for look_up in (
        lambda: resolve_inside(root, "up/secret.jpg"),
        lambda: Folder(root).find("up/secret.jpg"),
    ):
        with pytest.raises(DataError, match="through a link"):
            look_up()


def test_links_that_stay_inside_and_a_root_that_is_a_link_are_fine(root: Path, tmp_path: Path) -> None:
    (root / "link.jpg").symlink_to("sub/b.jpg")
    linked_root = tmp_path / "elsewhere"
    linked_root.symlink_to(root)
    assert Folder(linked_root).find("link.jpg").read_bytes() == b"x"
    assert resolve_inside(linked_root, "link.jpg") == (root / "sub" / "b.jpg").resolve()


@pytest.mark.parametrize("name", ["\ud800.jpg", "\ud800/a.jpg", "a/" * 3000 + "b.jpg", "a" * 5000])
def test_names_that_no_file_system_takes(root: Path, name: str) -> None:
    for look_up in (lambda: resolve_inside(root, name), lambda: Folder(root).find(name)):
        with pytest.raises(DataError, match="is not a file name below") as caught:
            look_up()
        assert len(str(caught.value)) < 500


def test_a_pipe_is_no_file(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    (root / "link.jpg").symlink_to("pipe.jpg")
    for name, message in (("pipe.jpg", "no file 'pipe.jpg'"), ("link.jpg", "is a link to no file")):
        with pytest.raises(DataError, match=message):
            Folder(root).find(name)


def test_a_loop_of_links_and_a_link_to_nothing(root: Path) -> None:
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "nothing.jpg").symlink_to("gone.jpg")
    for name in ("loop.jpg", "nothing.jpg"):
        with pytest.raises(DataError, match=name):
            Folder(root).find(name)


def test_find_gives_files_and_nothing_else(root: Path) -> None:
    folder = Folder(root)
    assert folder.find("a.jpg") == root / "a.jpg"
    assert folder.find("./sub//b.jpg") == root / "sub" / "b.jpg"
    for name in ("missing.jpg", "sub", "no/such.jpg", "a.jpg/x.jpg", "b.jpg"):
        with pytest.raises(DataError, match="no file"):
            folder.find(name)


def test_each_folder_is_listed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    folder = Folder(root)
    for _ in range(3):
        folder.find("a.jpg")
        folder.find("sub/b.jpg")
    assert len(listed) == 2


def test_alike_ignores_case_and_suffix(root: Path) -> None:
    for name in ("X.JPG", "x.png", "xy.jpg"):
        (root / name).write_bytes(b"")
    assert Folder(root).alike("x") == ["X.JPG", "x.png"]
    assert Folder(root).alike("sub/B") == ["sub/b.jpg"]
    assert Folder(root).alike("none") == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Gru\u0308n e\u0301.jpg", "Gr\u00fcn \u00e9.jpg"),  # decomposed, as macOS stores it
        ("Gr\u00fcn.jpg", "Gru\u0308n.jpg"),
        ("Gru\u0308n/\u00e9.jpg", "Gr\u00fcn/e\u0301.jpg"),
        ("IMG_1.JPG", "img_1.jpg"),
        ("my photo #1.jpg", "my%20photo%20%231.jpg"),
        ("cam1/x.jpg", "cam1\\x.jpg"),
        ("x 1.jpg", "C:\\Users\\me\\x 1.jpg"),
        ("x.jpg", "images/x.jpg"),
        ("x.jpg", "/data/upload/1/x.jpg"),
        ("x.jpg", "data/local-files/?d=images/x.jpg"),
        ("x.jpg", "x.jpg "),
    ],
)
def test_a_name_spelt_otherwise_than_the_one_file_that_fits(root: Path, file: str, name: str) -> None:
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_bytes(b"this")
    folder = Folder(root)
    assert [folder.find(name).read_bytes() for _ in range(2)] == [b"this", b"this"]
    assert folder.respelt == {file: name}
    assert folder.find(file) == root / file


def test_a_file_is_taken_for_one_name_and_never_for_a_choice(root: Path) -> None:
    for file in ("X.jpg", "x.JPG", "y.jpg", "a%20b.jpg", "a b.jpg"):
        (root / file).write_bytes(b"")
    folder = Folder(root, {"a.jpg"})
    with pytest.raises(DataError, match=r"'X\.jpg' and 'x\.JPG' both fit"):
        folder.find("x.jpg")
    with pytest.raises(DataError, match=r"no file 'A\.JPG'"):
        folder.find("A.JPG")  # another name stands for that file
    folder.find("Y.jpg")
    with pytest.raises(DataError, match=r"'Y\.jpg' and 'far/y\.jpg' both fit the one file 'y\.jpg'"):
        folder.find("far/y.jpg")
    assert folder.find("a%20b.jpg") == root / "a%20b.jpg"  # what is there is never unquoted
    assert folder.find("A%20B.jpg") == root / "a%20b.jpg"  # the nearest spelling


@pytest.mark.parametrize(
    "name", ["%2e%2e/secret.jpg", "%2fetc%2fpasswd", "%00", "..%5csecret.jpg", "UP/secret.jpg"]
)
def test_other_spellings_lead_outside_no_more_than_names(root: Path, name: str) -> None:
    (root / "up").symlink_to(root.parent)
    with pytest.raises(DataError):
        Folder(root).find(name)
