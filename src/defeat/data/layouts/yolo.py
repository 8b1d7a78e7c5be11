"""YOLO folders: of Ultralytics' data.yaml, of CVAT's obj.data, images/ and labels/ with classes.txt."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import OmegaConf

from defeat.data.images import IMAGE_SUFFIXES
from defeat.data.layouts.layout import Layout, Part, part_of
from defeat.data.paths import files_below
from defeat.data.yolo import label_file, read_yolo
from defeat.errors import DataError
from defeat.io.safe_read import is_dir, is_file, load_json, read_regular
from defeat.io.text import counted, few, quote

_PARTS: tuple[Part, ...] = ("train", "val", "test")
_NAMES = ("classes.txt", "obj.names", "*.names", "labels/classes.txt", "train/classes.txt")


def find_yolo(root: Path) -> Layout | None:
    """Recognise YOLO's text files beside pictures, by a description or by the folders alone.

    Raises:
        DataError: the description makes no sense, or the names of the classes are nowhere.
    """
    described = _by_yaml(root) or _by_obj_data(root)
    if described:
        return described
    places = dict(_folders(root))
    if not places:
        return None
    names = _names(root)
    if names is None:
        raise DataError(
            f"{root} has YOLO's pictures and label files ({few([*places.values()])}), but no names of the "
            "classes: add classes.txt with a name in each line, or data.yaml with names"
        )
    readers = {part: partial(read_yolo, place, names) for part, place in places.items()}
    return Layout("YOLO", readers, places)


def _by_yaml(root: Path) -> Layout | None:
    files = [path for path in sorted(root.glob("*.y*ml")) if path.suffix in (".yaml", ".yml")]
    described = {path: content for path in files if (content := _yaml(path)) is not None}
    if len(described) > 1:  # Roboflow's and Ultralytics' name of it
        described = {path: content for path, content in described.items() if path.stem == "data"} or described
    if len(described) > 1:
        files_named = few([path.name for path in described])
        raise DataError(f"{root} holds several descriptions of YOLO data ({files_named}): leave one there")
    for path, content in described.items():
        listed = {part: _places(root, path, content, content[part]) for part in _PARTS if content.get(part)}
        if not listed.get("val") and content.get("valid"):
            listed["val"] = _places(root, path, content, content["valid"])
        names = _listed_names(path, content["names"])
        if content.get("nc", len(names)) != len(names):
            raise DataError(
                f"{path}: nc is {quote(content['nc'])}, but names holds {counted(len(names), 'names')}"
            )
        keypoints = bool(content.get("kpt_shape"))
        readers = {
            part: partial(read_yolo, where, names, keypoints=keypoints) for part, where in listed.items()
        }
        return Layout(f"YOLO ({path.name})", readers, {part: few(where) for part, where in listed.items()})
    return None


def _yaml(path: Path) -> dict[str, Any] | None:
    """Return what a file says if it describes YOLO data."""
    try:
        content = OmegaConf.to_container(OmegaConf.create(read_regular(path, 2**24).decode("utf-8-sig")))
    except Exception as error:  # of the parser, in many ways
        if path.stem == "data":
            raise DataError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
        return None
    if not isinstance(content, dict) or "names" not in content or not set(content) & {"train", "val", "test"}:
        return None
    return {str(key): value for key, value in content.items()}


def _listed_names(path: Path, names: Any) -> list[str]:
    """Return the names in the order of their numbers, from a list or a map."""
    if isinstance(names, dict):
        try:
            by_number = {int(number): name for number, name in names.items()}
        except ValueError:
            raise DataError(
                f"{path}: the keys of names must be numbers from 0 on, got {quote(names)}"
            ) from None
        if sorted(by_number) != list(range(len(by_number))):
            raise DataError(
                f"{path}: names must be numbered from 0 on without gaps, got {few(sorted(by_number), 8)}"
            )
        names = [by_number[number] for number in range(len(by_number))]
    if not isinstance(names, list):
        raise DataError(f"{path}: names must be a list or a map, got {quote(names)}")
    return _checked_names(path, [str(name) for name in names])


def _checked_names(path: Path, names: list[str]) -> list[str]:
    if not names:
        raise DataError(f"{path} names no class")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{path} names {quote(twice[0])} twice: each name stands for one number")
    return names


def _places(root: Path, file: Path, content: dict[str, Any], given: Any) -> list[str]:
    """Find the folders and lists of a part below the root, as the description means them.

    ``path`` may be of another machine, and Roboflow writes ``../train/images`` for a folder beside the file.
    """
    places = []
    named = given if isinstance(given, list) else [given]
    if not all(isinstance(name, str) for name in named):
        raise DataError(f"{file}: train, val and test must be folders or lists, got {quote(given)}")
    for name in named:
        tried = list(dict.fromkeys(_below(root, str(content.get("path") or "."), name)))
        there = [place for place in tried if is_dir(root / place) or is_file(root / place)]
        if not there:
            raise DataError(
                f"{file}: {quote(name)} is neither a folder nor a list in {root}; looked for {few(tried, 6)}"
            )
        places.append(there[0])
    return places


def _below(root: Path, path: str, name: str) -> Iterator[str]:
    """Yield what a path may mean below the root, from the nearest to the last parts alone."""
    for base in (path, "."):
        joined = Path(root, base, name)
        try:
            yield joined.resolve().relative_to(root.resolve()).as_posix()
        except ValueError:  # outside
            continue
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("..", "/")]
    for first in range(len(parts)):
        yield str(PurePosixPath(*parts[first:]))


def _by_obj_data(root: Path) -> Layout | None:
    """Recognise CVAT's YOLO 1.1: obj.data names the lists, obj.names the classes."""
    file = root / "obj.data"
    if not is_file(file):
        return None
    lines = read_regular(file, 2**20).decode("utf-8-sig", "replace").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    content: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs}
    if "valid" in content:
        content["val"] = content["valid"]
    listed = {part: _places(root, file, {}, content[part]) for part in _PARTS if content.get(part)}
    names = _names(root)
    if names is None:
        raise DataError(f"{file}: there is no obj.names with the names of the classes beside it")
    readers = {part: partial(read_yolo, where, names) for part, where in listed.items()}
    return Layout("YOLO (obj.data)", readers, {part: few(where) for part, where in listed.items()})


def _folders(root: Path) -> Iterator[tuple[Part, str]]:
    """Yield the folders of pictures that have label files, by part."""
    divided: dict[Part, str] = {}
    for folder in (*sorted(filter(is_dir, root.iterdir())), *_sub(root / "images")):
        part = part_of(folder.name)
        place = folder / "images" if is_dir(folder / "images") else folder
        if part and _is_labelled(root, place):
            divided.setdefault(part, str(place.relative_to(root)))
    if divided:
        yield from divided.items()
        return
    for name in ("images", "obj_train_data", "."):
        if is_dir(root / name) and _is_labelled(root, root / name):
            yield "train", name
            return


def _sub(folder: Path) -> list[Path]:
    return sorted(filter(is_dir, folder.iterdir())) if is_dir(folder) else []


def _is_labelled(root: Path, folder: Path) -> bool:
    """Tell whether a picture below a folder has a label file."""
    below = folder.relative_to(root).as_posix()
    prefix = "" if below == "." else f"{below}/"
    pictures = (name for name in files_below(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    return any(is_file(root / label_file(root, f"{prefix}{name}")) for name in pictures)


def _names(root: Path) -> list[str] | None:
    """Return the class names that lie in a file of their own."""
    for pattern in _NAMES:
        for path in sorted(root.glob(pattern)):
            text = read_regular(path, 2**24).decode("utf-8-sig", "replace")
            return _checked_names(path, [line.strip() for line in text.splitlines() if line.strip()])
    if is_file(root / "notes.json"):  # Label Studio's
        try:
            items = load_json(root / "notes.json")["categories"]
            return [str(item["name"]) for item in sorted(items, key=lambda item: item["id"])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{root / 'notes.json'} does not say the classes: {error}") from error
    return None
