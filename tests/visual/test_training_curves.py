from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defeat.errors import DataError
from defeat.visual import plot_curves, read_curve
from defeat.visual.training_curves import smooth

METRICS = """epoch,step,train/loss_detection,val/AP
0,9,2.0,
0,19,1.5,
0,19,,0.1
1,29,1.0,
1,39,,0.25
1,29,0.75,
"""


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    return path


def test_read_curve_skips_gaps_sorts_and_keeps_the_later(metrics: Path):
    steps, values = read_curve(metrics, "train/loss_detection")
    assert steps.tolist() == [9, 19, 29]
    assert values.tolist() == [2.0, 1.5, 0.75]
    steps, values = read_curve(metrics, "val/AP")
    assert steps.tolist() == [19, 39]
    assert values.tolist() == [0.1, 0.25]


def test_read_curve_reads_what_lightning_writes(tmp_path: Path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"train/loss_detection": 2.0}, step=9)
    logger.log_metrics({"val/AP": 0.5}, step=9)
    logger.save()
    steps, values = read_curve(Path(logger.log_dir) / "metrics.csv", "val/AP")
    assert (steps.tolist(), values.tolist()) == ([9], [0.5])


def test_read_curve_says_what_is_wrong(metrics: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        read_curve(tmp_path / "none.csv", "val/AP")
    with pytest.raises(DataError, match=r"no column 'val/AR'.*train/loss_detection"):
        read_curve(metrics, "val/AR")
    metrics.write_text(METRICS.replace("0.25", "much"))
    with pytest.raises(DataError, match=r"line 6: .*'much'"):
        read_curve(metrics, "val/AP")


def test_smooth_averages_neighbours_and_skips_what_is_not_finite():
    assert smooth(np.array([1.0, 2.0, 6.0, 4.0]), 3).tolist() == [1.5, 3.0, 4.0, 5.0]
    assert smooth(np.array([1.0, np.nan, 3.0]), 3).tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(smooth(np.array([np.nan, np.nan]), 1)).all()
    assert smooth(np.array([5.0, 7.0]), 1).tolist() == [5.0, 7.0]
    assert smooth(np.array([]), 3).tolist() == []


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    with Image.open(path) as picture:
        assert picture.width == 1200
        return int((np.asarray(picture.convert("RGB")) == colour).all(axis=-1).sum())


def test_plot_curves_draws_every_run_and_the_teacher(metrics: Path, tmp_path: Path):
    other = tmp_path / "other.csv"
    other.write_text(METRICS.replace("0.25", "0.4").replace("1.5", "1.2"))
    one, two, teacher = (tmp_path / f"{name}.png" for name in ("one", "two", "teacher"))
    plot_curves({"plain": metrics}, one)
    plot_curves({"plain": metrics, "distilled": other}, two)
    plot_curves({"plain": metrics, "distilled": other}, teacher, teacher_ap=0.6)
    blue, orange, grey = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x6B, 0x70, 0x76)
    assert pixels(one, blue) > 500
    assert pixels(one, orange) == 0
    assert pixels(two, orange) > 500
    assert pixels(two, grey) < 50 < pixels(teacher, grey)


def test_plot_curves_of_a_run_without_validation_yet(metrics: Path, tmp_path: Path):
    metrics.write_text("step,train/loss_detection,val/AP\n9,2.0,\n")
    plot_curves({"plain": metrics}, tmp_path / "early.png")
    assert (tmp_path / "early.png").is_file()


def test_plot_curves_writes_the_same_picture_twice(metrics: Path, tmp_path: Path):
    for name in "ab":
        plot_curves({"plain": metrics}, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
