"""Many pictures of a split on one sheet, by class, to see whether boxes lie where they should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from defeat.data.dataset import decode
from defeat.errors import DataError
from defeat.io.atomic_write import replacing
from defeat.types import Annotations, Record
from defeat.visual.boxes import IGNORED_COLOUR, INK, class_colour, class_label
from defeat.visual.pictures import font

TILE, GAP, CAPTION = 240, 8, 20
"""Pixels of a picture's side, between pictures, and of the line of text above each."""

MOST_CLASSES = 96
"""Classes on a sheet, those with most boxes; more could not be read."""

MOST_TILES = 48
"""Pictures on a sheet of few classes."""


def contact_sheet(annotations: Annotations, path: Path, title: str) -> None:
    """Draw pictures of each class with their boxes: those of the class in its colour, all others grey.

    Args:
        annotations: a split whose rule for orientations is decided; what cannot be decoded is left out.
        path: a PNG file.
        title: the first words of the sheet.
    """
    of_class = _records_of_classes(annotations)
    each = max(1, min(6, MOST_TILES // max(1, len(of_class))))
    tiles = [
        _tile(record, image, label, annotations.classes[label - 1])
        for label, records in of_class.items()
        for record, image in _decoded(records, annotations, each)
    ]
    columns = min(len(tiles), each * max(1, 8 // each)) or 1
    rows = -(-len(tiles) // columns)
    left_out = sum(bool(n) for n in _counts(annotations)) - len(of_class)
    more = f", {left_out} classes with fewer boxes left out" if left_out else ""
    heights = [max(tile.height for tile in tiles[row * columns :][:columns]) + GAP for row in range(rows)]
    width = max(columns * (TILE + GAP) + GAP, 4 * TILE)
    sheet = Image.new("RGB", (width, 2 * CAPTION + sum(heights)), "white")
    ImageDraw.Draw(sheet).text(
        (GAP, GAP), f"{title}: boxes of the named class in colour, others grey{more}", fill=INK, font=font(16)
    )
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet.paste(tile, (GAP + column * (TILE + GAP), 2 * CAPTION + sum(heights[:row])))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _counts(annotations: Annotations) -> list[int]:
    labels = np.concatenate([np.empty(0, np.int64), *(record.labels for record in annotations.records)])
    counts: list[int] = np.bincount(labels, minlength=len(annotations.classes) + 1)[1:].tolist()
    return counts


def _records_of_classes(annotations: Annotations) -> dict[int, list[Record]]:
    """Return the records of each class on the sheet, by label, mixed but always in the same way."""
    counts = _counts(annotations)
    most = sorted(range(1, len(counts) + 1), key=lambda label: -counts[label - 1])[:MOST_CLASSES]
    of_class: dict[int, list[Record]] = {label: [] for label in sorted(most) if counts[label - 1]}
    order = np.random.default_rng(0).permutation(len(annotations.records)).tolist()
    for record in (annotations.records[position] for position in order):
        for label in set(record.labels.tolist()) & of_class.keys():
            of_class[label].append(record)
    return of_class


def _decoded(
    records: list[Record], annotations: Annotations, most: int
) -> Iterator[tuple[Record, Image.Image]]:
    left = most
    for record in records:
        if not left:
            return
        try:
            image = decode(record, annotations)
        except DataError:  # told by the check of the pictures
            continue
        left -= 1
        yield record, Image.fromarray(image.permute(1, 2, 0).numpy())


def _tile(record: Record, image: Image.Image, label: int, name: str) -> Image.Image:
    scale = TILE / max(image.size)
    picture = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    draw = ImageDraw.Draw(picture)
    boxes = record.boxes * scale
    is_named = (record.labels == label) & ~record.ignore
    for box in boxes[~is_named].tolist():
        draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline="#0c0c0c", width=1)
        draw.rectangle(box, outline=IGNORED_COLOUR, width=1)
    for box in boxes[is_named].tolist():
        draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline="#0c0c0c", width=4)
        draw.rectangle(box, outline=class_colour(label), width=2)
    tile = Image.new("RGB", (TILE, picture.height + CAPTION), "white")
    tile.paste(picture, ((TILE - picture.width) // 2, CAPTION))
    text = ImageDraw.Draw(tile)
    text.rectangle((0, 3, 10, 13), fill=class_colour(label), outline=INK)
    text.text((15, 1), f"{class_label(name).strip()}  {record.path.name}", fill=INK, font=font(12))
    return tile
