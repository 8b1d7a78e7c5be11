"""Scenes on disk: ``<root>/<split>/*.png`` and ``<root>/annotations/<split>.json``, in COCO's format."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from defeat.data.coco import read_coco
from defeat.data.error_policy import OnError
from defeat.data.scenes.scene import Scene, render_scene
from defeat.data.scenes.shapes import CLASSES
from defeat.errors import DataError
from defeat.types import Annotations

GENERATOR_VERSION = 1
"""Raised whenever the same parameters give other pixels or boxes: older files on disk are then refused."""


def generate_scenes(root: str | Path, split: str, images: int, size: int = 128, seed: int = 0) -> Path:
    """Write a split, or leave the one that is there, and return its annotation file.

    Args:
        root: folder of the data set; it is made when missing.
        split: name of the split, e.g. ``train``; every name gives images of its own.
        images: number of images; the first n are the same whatever the number.
        size: side of the square images in pixels.
        seed: seed of the split's images.

    Raises:
        DataError: a parameter makes no sense, or the split exists with other parameters.
    """
    _check(split, images, size, seed)
    root = Path(root)
    folder, annotation_file = root / split, root / "annotations" / f"{split}.json"
    info = {
        "description": "generated scenes",
        "generator_version": GENERATOR_VERSION,
        "split": split,
        "images": images,
        "size": size,
        "seed": seed,
    }
    if _is_there(folder, annotation_file, info):
        return annotation_file
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    # A hidden neighbour on the same file system, so that the renames at the end cannot be half done.
    with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=root) as scratch:
        _write(Path(scratch), info)
        (Path(scratch) / "annotations.json").replace(annotation_file)
        _publish(Path(scratch) / "images", folder, annotation_file, info)
    return annotation_file


def read_scenes(
    root: str | Path,
    split: str,
    images: int,
    size: int = 128,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
) -> Annotations:
    """Read a split of generated scenes, made first where it is missing; see :func:`generate_scenes`."""
    annotation_file = generate_scenes(root, split, images, size, seed)
    return read_coco(annotation_file, Path(root) / split, classes=classes, on_error=on_error)


def _check(split: str, images: int, size: int, seed: int) -> None:
    if not split or Path(split).name != split or split.startswith(".") or split == "annotations":
        raise DataError(f"scenes: split {split!r} must be a plain folder name such as 'train'")
    if images < 1 or not 32 <= size <= 1024 or seed < 0:
        raise DataError(
            "scenes: need images >= 1, size in 32..1024 and seed >= 0, "
            f"got images={images}, size={size}, seed={seed}"
        )


def _is_there(folder: Path, annotation_file: Path, info: dict[str, Any]) -> bool:
    """Tell whether the whole split is on disk: the image folder arrives last."""
    if not folder.exists():
        return False
    try:
        there = json.loads(annotation_file.read_text(encoding="utf-8"))["info"]
    except (OSError, ValueError, KeyError, TypeError):
        there = None
    if not isinstance(there, dict):
        raise DataError(
            f"{folder} exists, but {annotation_file} does not describe generated scenes: "
            "remove the folder or choose another root"
        )
    differing = [f"{k}={there.get(k)!r} instead of {v!r}" for k, v in info.items() if there.get(k) != v]
    if differing:
        raise DataError(
            f"{folder} holds scenes with {', '.join(differing)}: remove {folder} and {annotation_file}, "
            "choose another root, or ask for what is there"
        )
    return True


def _write(scratch: Path, info: dict[str, Any]) -> None:
    """Render everything into ``scratch``."""
    (scratch / "images").mkdir()
    coco: dict[str, Any] = {
        "info": info,
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
    }
    size = info["size"]
    for index in range(info["images"]):
        name = f"{index:06d}.png"
        scene = render_scene(info["seed"], info["split"], index, size)
        Image.fromarray(scene.image).save(scratch / "images" / name, compress_level=1)
        coco["images"].append({"id": index + 1, "file_name": name, "width": size, "height": size})
        _annotate(coco["annotations"], scene, index + 1)
    (scratch / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")


def _annotate(annotations: list[dict[str, Any]], scene: Scene, image_id: int) -> None:
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.box
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": thing.label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": thing.area,
                "iscrowd": int(thing.crowd),
            }
        )


def _publish(made: Path, folder: Path, annotation_file: Path, info: dict[str, Any]) -> None:
    """Move the images to their place; when another process was faster, its (equal) ones stay."""
    made.chmod(0o755)
    try:
        made.rename(folder)
    except OSError:
        if not _is_there(folder, annotation_file, info):
            raise
        shutil.rmtree(made)
