"""Small data sets on disk, sound as they are; each test breaks one thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save_picture(path: Path, width: int = 60, height: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def annotation(number: int, image: int, category: int, box: list[float], **more: float) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


class CocoFiles:
    """Three 60x40 images with ids 7, 900 and 31; the last has no boxes. Categories 3 dog and 18 cat."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "instances.json"
        self.images = root / "images"
        names = {7: "a.jpg", 900: "b.png", 31: "c.jpg"}
        for name in names.values():
            save_picture(self.images / name)
        self.content: dict[str, Any] = {
            "images": [
                {"id": image, "file_name": name, "width": 60, "height": 40} for image, name in names.items()
            ],
            "annotations": [
                annotation(930, 900, 18, [1, 2, 30, 20], area=450.5, iscrowd=0),
                annotation(931, 7, 3, [10.5, 5, 20, 10], area=111, iscrowd=0),
                annotation(932, 900, 3, [0, 0, 60, 40], area=2000, iscrowd=1),
                annotation(933, 7, 18, [3, 4, 5, 6]),
            ],
            "categories": [{"id": 18, "name": "cat"}, {"id": 3, "name": "dog"}],
        }

    def write(self) -> tuple[Path, Path]:
        self.file.write_text(json.dumps(self.content))
        return self.file, self.images


class VocFiles:
    """A VOC root; ``add`` writes one image with its XML and puts it into the list."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        self.lines: list[str] = []

    def add(
        self,
        stem: str,
        *objects: str,
        picture: str | None = "",
        filename: str | None = "",
        size: str = "<size><width>60</width><height>40</height><depth>3</depth></size>",
        line: str | None = None,
    ) -> Path:
        """``picture`` and ``filename`` are ``stem.jpg`` by default; None leaves them out."""
        if picture is not None:
            save_picture(self.root / "JPEGImages" / (picture or f"{stem}.jpg"))
        named = "" if filename is None else f"<filename>{filename or f'{stem}.jpg'}</filename>"
        xml = self.root / "Annotations" / f"{stem}.xml"
        xml.write_text(f"<annotation>{named}{size}{''.join(objects)}</annotation>")
        self.lines.append(stem if line is None else line)
        self.write_list("train")
        return xml

    def write_list(self, name: str) -> None:
        (self.root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(self.lines) + "\n")


def voc_object(name: str, *box: object, difficult: object = 0) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")[: len(box)]
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    head = f"{part}<name>{name}</name><difficult>{difficult}</difficult>"
    return f"<object>{head}<bndbox>{corners}</bndbox></object>"
