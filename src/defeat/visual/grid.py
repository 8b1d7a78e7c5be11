"""Several models' detections on the same images, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

from PIL import Image, ImageDraw
from torch import Tensor

from defeat.types import Prediction, Target
from defeat.visual.draw import draw_boxes, draw_judged
from defeat.visual.legend import draw_legend
from defeat.visual.matching import above, match
from defeat.visual.palette import FADED, INK, PAPER
from defeat.visual.strokes import font

GAP, MARGIN, CAPTION, HEADER = 10, 16, 22, 46

Panel = Target | Prediction
Row = tuple[Tensor, Sequence[Panel]]


class Tally(NamedTuple):
    """How the detections of one panel, or of a whole column, fared."""

    found: int
    missed: int
    false: int


class _Cell(NamedTuple):
    """One finished panel."""

    picture: Image.Image
    objects: int
    tally: Tally | None
    """None for ground truth."""


class _Judge(NamedTuple):
    """What all panels of a sheet share."""

    classes: Sequence[str]
    threshold: float
    iou: float
    side: int


def side_by_side(
    rows: Sequence[Row],
    titles: Sequence[str],
    classes: Sequence[str],
    threshold: float = 0.5,
    iou: float = 0.5,
    side: int = 288,
) -> Image.Image:
    """One row per image, one column per model, and a legend underneath.

    A panel that is a ``Target`` shows ground truth; a ``Prediction`` is judged by its row's ground truth:
    hits are solid in the colour of their class, false detections dashed red with the name of their class,
    missed objects dotted. Counts stand under every panel and, summed up, under every title.

    Args:
        rows: image, (3, H, W) uint8, and its panels; all boxes in pixels of that image. Each row holds at
            least one ``Target``, the first of which is the ground truth.
        titles: one per column.
        classes: the K names.
        threshold: detections with a lower score are left out.
        iou: overlap that a hit needs.
        side: px of the longer side of every image on the sheet.

    Raises:
        ValueError: no rows, a row without ground truth or with another number of panels than titles.
    """
    if not rows:
        raise ValueError("side_by_side needs at least one row")
    judge = _Judge(classes, threshold, iou, side)
    cells = [_row(image, panels, titles, judge) for image, panels in rows]
    heights = [max(cell.picture.height for cell in row) + CAPTION + GAP for row in cells]
    width = 2 * MARGIN + len(titles) * (side + GAP) - GAP
    legend = draw_legend(classes, width - 2 * MARGIN, threshold, iou)
    sheet = Image.new("RGB", (width, 2 * MARGIN + HEADER + sum(heights) + legend.height), PAPER)
    _head(sheet, titles, cells, side)
    top = MARGIN + HEADER
    for row, height in zip(cells, heights, strict=True):
        for column, cell in enumerate(row):
            _paste(sheet, cell, MARGIN + column * (side + GAP), top, side)
        top += height
    sheet.paste(legend, (MARGIN, top))
    return sheet


def _is_prediction(panel: Panel) -> TypeGuard[Prediction]:
    return "scores" in panel


def _is_target(panel: Panel) -> TypeGuard[Target]:
    return "scores" not in panel


def _row(image: Tensor, panels: Sequence[Panel], titles: Sequence[str], judge: _Judge) -> list[_Cell]:
    """Draw the panels of one image."""
    if len(panels) != len(titles):
        raise ValueError(f"{len(panels)} panels for {len(titles)} titles: {', '.join(titles)}")
    truth = next((panel for panel in panels if _is_target(panel)), None)
    if truth is None:
        raise ValueError("a row holds no Target to judge its predictions by")
    return [_cell(image, panel, truth, judge) for panel in panels]


def _cell(image: Tensor, panel: Panel, truth: Target, judge: _Judge) -> _Cell:
    factor = judge.side / max(image.shape[1:])
    if _is_prediction(panel):
        shown = above(panel, judge.threshold)
        matching = match(shown, truth, judge.iou)
        picture = draw_judged(image, shown, truth, matching, judge.classes, factor)
        counts = (int(flags.sum()) for flags in (matching.hit, matching.missed, matching.false))
        return _Cell(picture, 0, Tally(*counts))
    assert _is_target(panel)
    picture = draw_boxes(
        image, panel["boxes"], panel["labels"], judge.classes, ignore=panel["ignore"], factor=factor
    )
    return _Cell(picture, int((~panel["ignore"]).sum()), None)


def _summary(cells: Sequence[_Cell]) -> str:
    """``3 found · 1 missed · 2 false`` over some panels, or how many objects there are."""
    tallies = [cell.tally for cell in cells if cell.tally is not None]
    if not tallies:
        objects = sum(cell.objects for cell in cells)
        return f"{objects} object{'' if objects == 1 else 's'}"
    found, missed, false = (sum(counts) for counts in zip(*tallies, strict=True))
    return f"{found} found · {missed} missed · {false} false"


def _head(sheet: Image.Image, titles: Sequence[str], cells: Sequence[Sequence[_Cell]], side: int) -> None:
    """Titles with the sums of their columns."""
    for column, title in enumerate(titles):
        middle = MARGIN + column * (side + GAP) + side // 2
        _centred(sheet, title, middle, MARGIN + 10, 19, side, bold=True)
        _centred(sheet, _summary([row[column] for row in cells]), middle, MARGIN + 32, 14, side)


def _paste(sheet: Image.Image, cell: _Cell, left: int, top: int, side: int) -> None:
    """Put a panel and its counts in place; one narrower than ``side`` goes to the middle of its column."""
    sheet.paste(cell.picture, (left + (side - cell.picture.width) // 2, top))
    _centred(sheet, _summary([cell]), left + side // 2, top + cell.picture.height + CAPTION // 2, 13, side)


def _centred(sheet: Image.Image, text: str, x: int, y: int, size: int, room: int, bold: bool = False) -> None:
    """Write one line around (x, y), smaller where it would be wider than ``room``."""
    size = min(size, max(8, int(size * room / max(1.0, font(size).getlength(text)))))
    ink = INK if bold else FADED
    ImageDraw.Draw(sheet).text(
        (x, y), text, font=font(size), fill=ink, anchor="mm", stroke_width=0.4 if bold else 0, stroke_fill=ink
    )
