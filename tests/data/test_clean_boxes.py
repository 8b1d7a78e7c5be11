import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from defeat.data import clean_boxes
from defeat.data.boxes import MIN_SIDE


def clean(*boxes: tuple[float, float, float, float], width: int = 100, height: int = 50):
    return clean_boxes(np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(width), np.array(height))


@pytest.mark.parametrize(
    ("box", "expected", "reason"),
    [
        ((10, 20, 30, 40), (10, 20, 30, 40), None),
        ((0, 0, 100, 50), (0, 0, 100, 50), None),
        ((-5, -6, 30, 40), (0, 0, 30, 40), "boxes clipped"),
        ((90, 40, 110, 60), (90, 40, 100, 50), "boxes clipped"),
        ((90, 40, 100.01, 50.01), (90, 40, 100, 50), None),  # what COCO's rounding does
        ((10, 20, 10, 40), None, "degenerate boxes dropped"),
        ((10, 20, 30, 20), None, "degenerate boxes dropped"),
        ((30, 20, 10, 40), None, "degenerate boxes dropped"),
        ((10, 20, 10 + MIN_SIDE / 2, 40), None, "degenerate boxes dropped"),
        ((100, 20, 130, 40), None, "boxes outside dropped"),
        ((-9, 20, 0, 40), None, "boxes outside dropped"),
        ((10, -30, 30, -1), None, "boxes outside dropped"),
        ((10, 60, 30, 70), None, "boxes outside dropped"),
        ((200, 20, 200, 40), None, "degenerate boxes dropped"),  # counted once, not as outside too
    ],
)
def test_each_case(box, expected, reason) -> None:
    result = clean(box)
    assert result.boxes.tolist() == ([] if expected is None else [list(map(float, expected))])
    assert {name: count for name, count in result.counts.items() if count} == ({reason: 1} if reason else {})


def test_kept_says_which_and_every_box_has_its_own_image() -> None:
    boxes = np.array([[0, 0, 80, 10], [5, 5, 5, 9], [0, 0, 80, 10]], dtype=np.float64)
    result = clean_boxes(boxes, np.array([100, 100, 50]), np.array([50, 50, 50]))
    assert result.kept.tolist() == [True, False, True]
    assert result.boxes.tolist() == [[0, 0, 80, 10], [0, 0, 50, 10]]
    assert result.boxes.dtype == np.float32


def test_no_boxes() -> None:
    result = clean()
    assert result.boxes.shape == (0, 4)
    assert not any(result.counts.values())


coordinates = st.floats(-1e6, 1e6) | st.integers(-20, 5000).map(float) | st.floats(4999, 5001)
box_arrays = st.integers(0, 12).flatmap(lambda n: hnp.arrays(np.float64, (n, 4), elements=coordinates))


@given(box_arrays, st.integers(1, 8192), st.integers(1, 8192))
def test_what_is_left_is_inside_has_a_size_and_stays_as_it_is(boxes, width: int, height: int) -> None:
    result = clean_boxes(boxes, np.array(width), np.array(height))
    left = result.boxes
    assert (left >= 0).all()
    assert (left[:, 2] <= width).all()
    assert (left[:, 3] <= height).all()
    assert (left[:, 2:] > left[:, :2]).all()
    assert len(left) == result.kept.sum()
    assert (~result.kept).sum() == result.counts["degenerate boxes dropped"] + result.counts[
        "boxes outside dropped"
    ]
    again = clean_boxes(left, np.array(width), np.array(height))
    assert np.array_equal(again.boxes, left)
    assert not any(again.counts.values())


@given(box_arrays, st.integers(1, 8192), st.integers(1, 8192))
def test_a_box_with_a_pixel_inside_is_never_lost(boxes, width: int, height: int) -> None:
    corners = np.clip(boxes, 0, [width, height, width, height])
    visible = (corners[:, 2:] - corners[:, :2] >= 1).all(axis=1)
    assert clean_boxes(boxes, np.array(width), np.array(height)).kept[visible].all()
