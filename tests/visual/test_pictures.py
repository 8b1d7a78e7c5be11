"""The pictures of detections, by what matplotlib is told to draw."""

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from defeat.types import Prediction, Target
from defeat.visual import draw_boxes, side_by_side
from defeat.visual.boxes import FALSE_COLOUR, IGNORED_COLOUR, class_colour
from defeat.visual.side_by_side import above, judge

CLASSES = ("disc", "square", "$ring$")
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


def drawn(axes: Axes) -> list[tuple[tuple[float, ...], str, str]]:
    """Each box in axes: corner and size, line style, colour."""
    return [
        (
            (*patch.get_xy(), patch.get_width(), patch.get_height()),
            patch.get_linestyle(),
            to_hex(patch.get_edgecolor()),
        )
        for patch in axes.patches
    ]


def names(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def blank() -> Axes:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def test_colours_of_classes_differ_and_none_looks_like_an_error():
    colours = [class_colour(i) for i in range(1, 41)]
    assert len(set(colours)) == 40
    for red, green, blue in map(to_rgb, colours):
        assert not (red > 0.7 and green < 0.3 and blue < 0.3)
    with pytest.raises(ValueError, match="start at 1"):
        class_colour(0)


def test_judge_takes_each_ground_truth_once_and_best_first():
    truth = target([[0, 0, 20, 20], [30, 30, 50, 50]], [1, 2])
    boxes = [[0, 0, 20, 19], [1, 1, 20, 20], [30, 30, 50, 50], [30, 30, 50, 38]]
    judged = judge(prediction(boxes, [1, 1, 1, 2], [0.9, 0.8, 0.7, 0.6]), truth)
    # Of the last three one box is taken, one has the wrong class, and one overlaps too little.
    assert judged.hit.tolist() == [True, False, False, False]
    assert judged.false.tolist() == [False, True, True, True]
    assert judged.missed.tolist() == [False, True]


def test_judge_prefers_the_larger_overlap():
    truth = target([[0, 0, 20, 20], [0, 4, 20, 24]], [1, 1])
    assert judge(prediction([[0, 4, 20, 24]], [1], [0.9]), truth).missed.tolist() == [True, False]


def test_detections_inside_a_crowd_of_their_class_are_not_judged():
    truth = target([[0, 0, 40, 40]], [1], [True])
    inside = prediction([[5, 5, 10, 10], [5, 5, 10, 10], [38, 38, 50, 50]], [1, 2, 1], [0.9, 0.8, 0.7])
    judged = judge(inside, truth)
    assert judged.ignored.tolist() == [True, False, False]
    assert judged.false.tolist() == [False, True, True]
    assert judged.missed.tolist() == [False]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (2, 0)])
def test_judge_of_nothing(n: int, m: int):
    judged = judge(
        prediction([[0, 0, 9, 9]] * n, [1] * n, [0.9] * n), target([[20, 20, 30, 30]] * m, [1] * m)
    )
    assert judged.false.tolist() == [True] * n
    assert judged.missed.tolist() == [True] * m


def test_above_keeps_and_sorts():
    kept = above(prediction([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]], [1, 2, 3], [0.5, 0.4, 0.9]), 0.5)
    assert kept["labels"].tolist() == [3, 1]
    assert kept["boxes"][:, 2].tolist() == [3, 1]


def test_boxes_stand_where_they_are_in_the_image_with_names_scores_and_colours():
    axes = blank()
    boxes = torch.tensor([[10.0, 30.0, 30.0, 50.0], [40.0, 36.0, 60.0, 62.0]])
    scores, ignore = torch.tensor([0.75, 0.5]), torch.tensor([False, True])
    draw_boxes(axes, GREY, boxes, torch.tensor([1, 3]), CLASSES, scores, ignore)
    assert drawn(axes) == [
        ((10, 30, 20, 20), "solid", class_colour(1)),
        ((40, 36, 20, 26), "dashed", IGNORED_COLOUR),
    ]
    assert names(axes) == ["disc 0.75", "$ring$ 0.50"]
    assert axes.images[0].get_extent() == [0, 64, 64, 0]


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), torch.zeros((8, 8, 3), dtype=torch.uint8), GREY[0]])
def test_draw_boxes_refuses_other_tensors(image: Tensor):
    with pytest.raises(ValueError, match="uint8"):
        draw_boxes(blank(), image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), CLASSES)


BOXES = [[8.0, 8.0, 28.0, 28.0], [36.0, 36.0, 56.0, 56.0]]
FIRST, SECOND = (8, 8, 20, 20), (36, 36, 20, 20)
TRUTH = target(BOXES, [1, 2])
PERFECT = prediction(BOXES, [1, 2], [0.9, 0.8])
MISSING = prediction(BOXES, [1, 2], [0.9, 0.2])
WRONG = prediction(BOXES, [1, 3], [0.9, 0.8])


@pytest.fixture(scope="module")
def grid() -> list[list[Axes]]:
    figure = side_by_side([(GREY, [TRUTH, PERFECT, MISSING, WRONG])] * 2, ["truth", "a", "b", "c"], CLASSES)
    return [figure.axes[:4], figure.axes[4:]]


def test_hits_are_solid_missed_objects_dotted_and_false_detections_dashed_red_with_a_name(grid):
    hit, found = (FIRST, "solid", class_colour(1)), (SECOND, "solid", class_colour(2))
    missed, false = (SECOND, "dotted", class_colour(2)), (SECOND, "dashed", FALSE_COLOUR)
    for truth, perfect, missing, wrong in grid:
        assert drawn(truth) == drawn(perfect) == [hit, found]
        assert sorted(drawn(missing)) == sorted([hit, missed])
        assert sorted(drawn(wrong)) == sorted([hit, missed, false])
        assert [names(axes) for axes in (truth, perfect, missing, wrong)] == [
            ["disc", "square"], [], [], ["$ring$"],
        ]  # fmt: skip


def test_counts_stand_under_each_panel_and_summed_under_each_title(grid):
    assert [axes.get_title() for axes in grid[0]] == [
        "truth\n4 objects",
        "a\n4 found · 0 missed · 0 false",
        "b\n2 found · 2 missed · 0 false",
        "c\n2 found · 2 missed · 2 false",
    ]
    assert [axes.get_xlabel() for axes in grid[1]] == [
        "2 objects",
        *("2 found · 0 missed · 0 false", "1 found · 1 missed · 0 false", "1 found · 1 missed · 1 false"),
    ]


def test_crowds_are_grey_and_dashed_and_so_is_what_is_detected_in_them():
    truth = target([[0, 0, 40, 40]], [1], [True])
    figure = side_by_side(
        [(GREY, [truth, prediction([[5, 5, 10, 10]], [1], [0.9])])], ["truth", "a"], CLASSES
    )
    assert [style for axes in figure.axes for _, *style in drawn(axes)] == [["dashed", IGNORED_COLOUR]] * 2
    assert figure.axes[1].get_xlabel() == "0 found · 0 missed · 0 false"


def test_threshold_decides_what_is_shown():
    figure = side_by_side([(GREY, [TRUTH, MISSING])], ["truth", "b"], CLASSES, threshold=0.1)
    assert [style for _, style, _ in drawn(figure.axes[1])] == ["solid", "solid"]


def test_the_legend_names_every_class_and_style():
    figure = side_by_side([(GREY, [TRUTH, PERFECT])], ["truth", "a"], CLASSES, threshold=0.3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *CLASSES,
        *("found", "missed", "false, with its class", "crowd or difficult"),
    ]
    assert "0.3" in legend.get_title().get_text()


def test_a_sheet_of_images_of_other_shapes_is_written(tmp_path):
    tall = torch.full((3, 80, 40), 60, dtype=torch.uint8)
    wide = torch.full((3, 300, 600), 90, dtype=torch.uint8)
    panels = [target([], []), prediction([], [], [])]
    path = tmp_path / "sheet.png"
    side_by_side([(tall, panels), (wide, panels)], ["truth", "model $"], CLASSES).savefig(path)
    with Image.open(path) as picture:
        colours = {colour: n for n, colour in picture.convert("RGB").getcolors(1 << 20) or []}
        assert picture.width > 2 * 288
    assert colours[(60, 60, 60)] > 2 * 100 * 200
    assert colours[(90, 90, 90)] > 2 * 250 * 125


def test_rows_that_cannot_be_judged_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        side_by_side([], ["truth"], CLASSES)
    with pytest.raises(ValueError, match="no Target"):
        side_by_side([(GREY, [PERFECT])], ["a"], CLASSES)
    with pytest.raises(ValueError, match="2 panels for 1 titles"):
        side_by_side([(GREY, [TRUTH, PERFECT])], ["a"], CLASSES)
