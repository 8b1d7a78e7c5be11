"""Which of the known layouts a folder has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from defeat.data.layouts.coco import find_coco
from defeat.data.layouts.layout import Layout
from defeat.data.layouts.voc import find_voc
from defeat.data.layouts.yolo import find_yolo
from defeat.errors import ConfigError, DataError
from defeat.io.safe_read import is_dir
from defeat.io.text import few, quote

_FINDERS: dict[str, Callable[[Path], Layout | None]] = {
    "coco": find_coco,
    "voc": find_voc,
    "yolo": find_yolo,
}

_LOOKED_FOR = (
    "COCO (*.json, annotations/*.json, train/_annotations.coco.json), Pascal VOC (Annotations/*.xml, XML "
    "beside the pictures), YOLO (data.yaml, or images/ and labels/ with classes.txt)"
)


def recognise(root: Path, layout: str | None = None, from_segmentation: bool = False) -> Layout:
    """Find out how a folder is laid out.

    Args:
        root: the folder.
        layout: ``coco``, ``voc`` or ``yolo``, to look for that alone.
        from_segmentation: make boxes of COCO annotations that have only an outline.

    Raises:
        DataError: none of the layouts fits, or several do.
        ConfigError: there is no such layout.
    """
    if layout not in (None, *_FINDERS):
        raise ConfigError(f"data.layout={layout} is none of {', '.join(_FINDERS)}; null: recognised")
    if not is_dir(root):
        raise DataError(f"{root} is no folder: check data.root")
    finders: dict[str, Callable[[Path], Layout | None]] = {
        **_FINDERS,
        "coco": partial(find_coco, from_segmentation=from_segmentation),
    }
    try:
        found = {name: finders[name](root) for name in ([layout] if layout else finders)}
        fitting = {name: which for name, which in found.items() if which}
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        if not fitting:
            raise DataError(f"{root}: no data set was recognised{_below(root)}; looked for {_LOOKED_FOR}")
    except OSError as error:
        raise DataError(f"{root} cannot be listed: {error.strerror}") from error
    what = " and ".join(f"{which.name} ({few([*which.places.values()])})" for which in fitting.values())
    raise DataError(f"{root} holds {what}: choose one by data.layout={' or '.join(fitting)}")


def _below(root: Path) -> str:
    """Name the folders directly below that are data sets."""
    below = []
    for folder in sorted(path for path in root.iterdir() if is_dir(path)):
        try:
            fits = any(find(folder) for find in _FINDERS.values())
        except (DataError, OSError):
            fits = True  # told when it is chosen
        if fits:
            below.append(folder)
    return f", but in it: data.root={quote(str(below[0]), 300)}" if below else ""
