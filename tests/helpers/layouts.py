"""One small data set, written in every layout that is recognised."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.data_sets import save_picture, voc_object

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 80, 50

Boxes = dict[str, list[tuple[str, int, int, int, int]]]
"""Objects of each picture: class and xyxy in pixels."""

TRAIN: Boxes = {
    "a b": [("dog", 8, 10, 40, 50), ("cat", 0, 5, 16, 25)],
    "münze": [("cat", 32, 0, 80, 50)],
    "empty": [],
}
VAL: Boxes = {"v1": [("dog", 16, 20, 64, 30)], "v2": [("cat", 8, 5, 24, 45)]}


def _save(folder: Path, stem: str) -> None:
    """Write a picture whose file differs from those of other names."""
    path = save_picture(folder / f"{stem}.jpg", WIDTH, HEIGHT)
    path.write_bytes(path.read_bytes() + stem.encode())  # what comes after the end is not decoded


def coco(file: Path, pictures: Path, boxes: Boxes, *, prefix: str = "", first: int = 1) -> None:
    """Write a COCO file, categories from ``first`` on, and its pictures."""
    images, annotations = [], []
    for number, (stem, objects) in enumerate(boxes.items()):
        _save(pictures, stem)
        size = {"width": WIDTH, "height": HEIGHT}
        images.append({"id": number, "file_name": f"{prefix}{stem}.jpg", **size})
        for name, x1, y1, x2, y2 in objects:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": CLASSES.index(name) + first}
            annotations.append({"id": len(annotations), "image_id": number, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=first)]
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))


def voc(folder: Path, pictures: Path, boxes: Boxes) -> None:
    """Write a file of Pascal VOC for each picture, whose pixels count from 1, and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, objects in boxes.items():
        _save(pictures, stem)
        found = "".join(voc_object(name, x1 + 1, y1 + 1, x2, y2) for name, x1, y1, x2, y2 in objects)
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (folder / f"{stem}.xml").write_text(f"<annotation>{size}{found}</annotation>", encoding="utf-8")


def yolo(labels: Path, pictures: Path, boxes: Boxes, *, polygons: bool = False) -> None:
    """Write a label file for each picture with objects, and the pictures."""
    labels.mkdir(parents=True, exist_ok=True)
    for stem, objects in boxes.items():
        _save(pictures, stem)
        lines = []
        for name, x1, y1, x2, y2 in objects:
            left, top, right, bottom = x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT
            if polygons:
                middle = (left + right) / 2
                shares = [middle, top, right, bottom, middle, bottom, left, top + 0.01]
            else:
                shares = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            lines.append(" ".join(map(str, [CLASSES.index(name), *shares])))
        if objects:
            (labels / f"{stem}.txt").write_text("\n".join(lines) + "\n")
