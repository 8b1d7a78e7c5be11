import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from defeat.types import Prediction, Target
from defeat.visual import draw_boxes, side_by_side
from defeat.visual.grid import CAPTION, GAP, HEADER, MARGIN
from defeat.visual.legend import draw_legend
from defeat.visual.matching import above, match
from defeat.visual.palette import FALSE, IGNORED, PAPER, class_colour
from defeat.visual.strokes import Style, rectangle, tag

CLASSES = ("disc", "square", "ring")
GREY = torch.full((3, 64, 64), 120, dtype=torch.uint8)


def target(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> Target:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "ignore": torch.tensor(ignore or [False] * len(labels), dtype=torch.bool),
        "area": torch.ones(len(labels)),
        "index": torch.tensor(0),
    }


def prediction(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Prediction:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores),
    }


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return sum(n for n, c in picture.getcolors(1 << 20) or [] if c == colour)


def edge(picture: Image.Image, box: tuple[int, int, int, int]) -> list[tuple[int, ...]]:
    """The pixels along a box's edge."""
    x1, y1, x2, y2 = box
    rows = [(x, y) for y in (y1, y2 - 1) for x in range(x1, x2)]
    columns = [(x, y) for x in (x1, x2 - 1) for y in range(y1, y2)]
    return [picture.getpixel(p) for p in rows + columns]  # type: ignore[misc]


# Colours


def test_colours_of_classes_differ_and_none_looks_like_an_error():
    colours = [class_colour(i) for i in range(1, 41)]
    assert len(set(colours)) == 40
    for red, green, blue in colours:
        assert not (red > 180 and green < 80 and blue < 80)
    with pytest.raises(ValueError, match="start at 1"):
        class_colour(0)


# Matching


def test_match_takes_each_ground_truth_once_and_best_first():
    truth = target([[0, 0, 20, 20], [30, 30, 50, 50]], [1, 2])
    found = prediction(
        [[0, 0, 20, 19], [1, 1, 20, 20], [30, 30, 50, 50], [30, 30, 50, 38]],
        [1, 1, 1, 2],
        [0.9, 0.8, 0.7, 0.6],
    )
    matching = match(found, truth)
    assert matching.hit.tolist() == [
        True,
        False,
        False,
        False,
    ]  # then: taken, wrong class, too small an overlap
    assert matching.false.tolist() == [False, True, True, True]
    assert matching.missed.tolist() == [False, True]


def test_match_prefers_the_larger_overlap():
    truth = target([[0, 0, 20, 20], [0, 4, 20, 24]], [1, 1])
    assert match(prediction([[0, 4, 20, 24]], [1], [0.9]), truth).missed.tolist() == [True, False]


def test_match_excuses_detections_inside_a_crowd_of_their_class():
    truth = target([[0, 0, 40, 40]], [1], [True])
    found = prediction([[5, 5, 10, 10], [5, 5, 10, 10], [38, 38, 50, 50]], [1, 2, 1], [0.9, 0.8, 0.7])
    matching = match(found, truth)
    assert matching.excused.tolist() == [True, False, False]
    assert matching.false.tolist() == [False, True, True]
    assert matching.missed.tolist() == [False]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (2, 0)])
def test_match_of_nothing(n: int, m: int):
    matching = match(
        prediction([[0, 0, 9, 9]] * n, [1] * n, [0.9] * n), target([[20, 20, 30, 30]] * m, [1] * m)
    )
    assert matching.false.tolist() == [True] * n
    assert matching.missed.tolist() == [True] * m


def test_above_keeps_and_sorts():
    kept = above(prediction([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]], [1, 2, 3], [0.5, 0.4, 0.9]), 0.5)
    assert kept["labels"].tolist() == [3, 1]
    assert kept["boxes"][:, 2].tolist() == [3, 1]


# Strokes


@pytest.mark.parametrize("style", list(Style))
def test_rectangle_covers_its_edge_and_nothing_inside(style: Style):
    canvas = Image.new("RGB", (60, 60), PAPER)
    rectangle(ImageDraw.Draw(canvas), (10, 10, 49, 39), FALSE, style)
    on, off = style.value
    share = sum(c == FALSE for c in edge(canvas, (10, 10, 50, 40))) / (2 * 40 + 2 * 30)
    assert share == pytest.approx(on / (on + off), abs=0.12)
    assert canvas.crop((13, 13, 47, 37)).getcolors() == [(34 * 24, PAPER)]
    assert canvas.getpixel((8, 20)) == PAPER


def test_tags_do_not_cover_each_other_and_stay_on_the_canvas():
    canvas = Image.new("RGB", (120, 120), PAPER)
    taken: list[tuple[int, int, int, int]] = []
    for anchor in [(0, 0, 60, 60), (0, 0, 60, 60), (90, 90, 119, 119), (90, 88, 119, 119)]:
        tag(ImageDraw.Draw(canvas), anchor, "square", FALSE, taken)
    assert all(min(x1, y1) >= 0 and max(x2, y2) < 120 for x1, y1, x2, y2 in taken)
    cover = torch.zeros(120, 120)
    for x1, y1, x2, y2 in taken:
        cover[y1 : y2 + 1, x1 : x2 + 1] += 1
    assert cover.max() == 1


# Boxes on one image


def test_draw_boxes_enlarges_and_paints_edges_in_class_colours():
    boxes = torch.tensor([[10.0, 30.0, 30.0, 50.0], [40.0, 36.0, 60.0, 62.0]])
    picture = draw_boxes(GREY, boxes, torch.tensor([1, 3]), CLASSES)
    assert picture.size == (256, 256)
    assert set(edge(picture, (40, 120, 120, 200))) == {class_colour(1)}
    assert picture.getpixel((80, 160)) == (120, 120, 120)
    assert edge(picture, (160, 144, 240, 248)).count(class_colour(3)) > 300


def test_draw_boxes_leaves_large_images_at_their_size():
    image = torch.zeros((3, 200, 300), dtype=torch.uint8)
    assert draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), CLASSES).size == (300, 200)


def test_draw_boxes_shows_scores_and_regions_to_ignore():
    boxes, labels = torch.tensor([[10.0, 30.0, 40.0, 60.0]]), torch.tensor([2])
    plain = draw_boxes(GREY, boxes, labels, CLASSES)
    scored = draw_boxes(GREY, boxes, labels, CLASSES, scores=torch.tensor([0.75]))
    ignored = draw_boxes(GREY, boxes, labels, CLASSES, ignore=torch.tensor([True]))
    assert count(scored, class_colour(2)) > count(plain, class_colour(2))  # a longer plate
    assert count(ignored, class_colour(2)) == 0
    assert count(ignored, IGNORED) > 100


@pytest.mark.parametrize("box", [[0.0, 0.0, 64.0, 64.0], [63.5, 63.5, 64.0, 64.0], [-5.0, -5.0, 3.0, 80.0]])
def test_boxes_at_the_border_stay_visible(box: list[float]):
    picture = draw_boxes(GREY, torch.tensor([box]), torch.tensor([1]), CLASSES)
    assert count(picture, class_colour(1)) > 100


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), torch.zeros((8, 8, 3), dtype=torch.uint8), GREY[0]])
def test_draw_boxes_refuses_other_tensors(image: Tensor):
    with pytest.raises(ValueError, match="uint8"):
        draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), CLASSES)


# The sheet

TRUTH = target([[8, 8, 28, 28], [36, 36, 56, 56]], [1, 2])
PERFECT = prediction(TRUTH["boxes"].tolist(), [1, 2], [0.9, 0.8])
MISSING = prediction([[8, 8, 28, 28], [36, 36, 56, 56]], [1, 2], [0.9, 0.2])
WRONG = prediction([[8, 8, 28, 28], [36, 36, 56, 56]], [1, 3], [0.9, 0.8])


def panel(sheet: Image.Image, row: int, column: int, side: int = 128) -> Image.Image:
    left = MARGIN + column * (side + GAP)
    top = MARGIN + HEADER + row * (side + CAPTION + GAP)
    return sheet.crop((left, top, left + side, top + side))


@pytest.fixture(scope="module")
def sheet() -> Image.Image:
    rows = [(GREY, [TRUTH, PERFECT, MISSING, WRONG])] * 2
    return side_by_side(rows, ["truth", "a", "b", "c"], CLASSES, side=128)


def test_sheet_has_one_panel_per_image_and_column(sheet: Image.Image):
    width = 2 * MARGIN + 4 * 128 + 3 * GAP
    legend = draw_legend(CLASSES, width - 2 * MARGIN, 0.5, 0.5)
    assert sheet.size == (width, 2 * MARGIN + HEADER + 2 * (128 + CAPTION + GAP) + legend.height)
    for row in range(2):
        for column in range(4):
            assert panel(sheet, row, column).getpixel((64, 64)) == (120, 120, 120)


def test_hits_are_solid_in_their_class_colour(sheet: Image.Image):
    perfect = panel(sheet, 0, 1)
    assert set(edge(perfect, (16, 16, 56, 56))) == {class_colour(1)}
    assert set(edge(perfect, (72, 72, 112, 112))) == {class_colour(2)}
    assert count(perfect, FALSE) == 0


def test_missed_objects_are_dotted(sheet: Image.Image):
    missed = edge(panel(sheet, 1, 2), (72, 72, 112, 112))
    assert 0.2 < missed.count(class_colour(2)) / len(missed) < 0.5
    assert (120, 120, 120) in missed
    assert count(panel(sheet, 1, 2), FALSE) == 0


def test_false_detections_are_dashed_red_with_a_name(sheet: Image.Image):
    wrong = panel(sheet, 0, 3)
    dashes = edge(wrong, (72, 72, 112, 112))
    assert 0.4 < dashes.count(FALSE) / len(dashes) < 0.8
    assert count(wrong.crop((60, 50, 128, 71)), FALSE) > 100  # the plate with the name
    assert count(wrong, class_colour(3)) == 0
    assert set(edge(wrong, (16, 16, 56, 56))) == {class_colour(1)}


def test_threshold_decides_what_is_shown():
    strict, lenient = (
        side_by_side([(GREY, [TRUTH, MISSING])], ["truth", "b"], CLASSES, threshold=t, side=128)
        for t in (0.5, 0.1)
    )
    assert set(edge(panel(lenient, 0, 1), (72, 72, 112, 112))) == {class_colour(2)}
    assert set(edge(panel(strict, 0, 1), (72, 72, 112, 112))) != {class_colour(2)}


def test_captions_count(monkeypatch: pytest.MonkeyPatch):
    from defeat.visual import grid

    written: list[str] = []
    monkeypatch.setattr(grid, "_centred", lambda sheet, text, *_, **__: written.append(text))
    side_by_side([(GREY, [TRUTH, MISSING]), (GREY, [TRUTH, WRONG])], ["truth", "model"], CLASSES)
    assert written == [
        "truth", "4 objects", "model", "2 found · 2 missed · 1 false",
        "2 objects", "1 found · 1 missed · 0 false", "2 objects", "1 found · 1 missed · 1 false",
    ]  # fmt: skip


def test_images_of_other_shapes_fit_their_column():
    tall = torch.full((3, 80, 40), 60, dtype=torch.uint8)
    wide = torch.full((3, 300, 600), 90, dtype=torch.uint8)
    nothing, none_found = target([], []), prediction([], [], [])
    picture = side_by_side(
        [(tall, [nothing, none_found]), (wide, [nothing, none_found])], ["truth", "model"], CLASSES, side=128
    )
    assert count(picture, (60, 60, 60)) == 2 * 64 * 128
    assert count(picture, (90, 90, 90)) == 2 * 128 * 64


def test_legend_names_every_class_and_wraps():
    narrow, broad = draw_legend(CLASSES, 200, 0.5, 0.5), draw_legend(CLASSES, 1200, 0.5, 0.5)
    assert narrow.height > broad.height
    assert all(count(broad, class_colour(i)) > 100 for i in (1, 2, 3))
    assert count(broad, FALSE) > 20


def test_sheet_refuses_rows_that_cannot_be_judged():
    with pytest.raises(ValueError, match="at least one row"):
        side_by_side([], ["truth"], CLASSES)
    with pytest.raises(ValueError, match="no Target"):
        side_by_side([(GREY, [PERFECT])], ["a"], CLASSES)
    with pytest.raises(ValueError, match="2 panels for 1 titles"):
        side_by_side([(GREY, [TRUTH, PERFECT])], ["a"], CLASSES)
