"""What TensorBoard gets of a run, read back from its event file."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.util.tensor_util import make_ndarray

from defeat.config import compose_config, leaves, to_plain
from defeat.evaluation import read_detections
from defeat.evaluation.precision_recall import PrecisionRecall
from defeat.run.build import build_run
from defeat.run.train import train
from defeat.training.hyperparameters import hyperparameters
from defeat.training.loggers import TensorBoard
from defeat.training.loggers.charts import LINES, scalar_layout
from tests.helpers.tiny import tiny, tiny_teacher

WITHOUT_CHART = r"epoch|val/voc_.*|val/AR10?|train/skipped_steps"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher: Path) -> Path:
    folder = tmp_path_factory.mktemp("dashboard")
    words = tiny(folder, scenes, *tiny_teacher(teacher), measured=True, pictured=True)
    train(compose_config("train", ["+experiment=scenes", *words]))
    return folder


@pytest.fixture(scope="module")
def board(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def test_every_curve_is_in_a_chart_of_at_most_six_lines(board: EventAccumulator) -> None:
    (event,) = board.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    tags = board.Tags()["scalars"]
    shown = set()
    for category in layout.category:
        titles = [chart.title for chart in category.chart]
        assert len(titles) == len(set(titles))
        for chart in category.chart:
            (pattern,) = chart.multiline.tag
            lines = {tag for tag in tags if re.match(pattern, tag)}  # as TensorBoard does
            assert 0 < len(lines) <= LINES, (chart.title, lines)
            shown |= lines
    assert [tag for tag in tags if tag not in shown and not re.fullmatch(WITHOUT_CHART, tag)] == []
    assert [category.title for category in layout.category] == [
        "Detection losses",
        "Distillation by region",
        "Distillation by level",
        "Gradient at the start, over the detection loss's",
        "AP",
        "AP by class",
        "Rates and speed",
    ]


def test_layouts_of_unlike_runs_merge_without_doubled_charts(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    layouts = []
    for words in (["+experiment=scenes_plain"], ["+experiment=scenes_fgfi", *tiny_teacher(teacher)]):
        config = compose_config("train", [*words, *tiny(tmp_path, scenes)])
        layouts.append(scalar_layout(build_run(config).module))
    whole, neck = layouts[0], layouts[1]
    assert all(neck[category] == charts for category, charts in whole.items())
    assert list(neck["Distillation by level"]) == ["neck_object"]  # FGFI has no other loss


def test_the_hparams_table_has_a_row_of_the_run(board: EventAccumulator, run_dir: Path) -> None:
    def content(tag: str) -> bytes:
        return board.SummaryMetadata(tag).plugin_data.content  # type: ignore[no-any-return]

    experiment = metadata.parse_experiment_plugin_data(content(metadata.EXPERIMENT_TAG))
    start = metadata.parse_session_start_info_plugin_data(content(metadata.SESSION_START_INFO_TAG))
    end = metadata.parse_session_end_info_plugin_data(content(metadata.SESSION_END_INFO_TAG))
    assert end.status == Status.Value("STATUS_SUCCESS")
    assert start.hparams["neck.background_weight"].number_value == 16.0
    assert {info.name for info in experiment.hparam_infos} == set(start.hparams)
    tags = {info.name.tag for info in experiment.metric_infos}
    assert "val/AP" in tags
    assert tags <= set(board.Tags()["scalars"])
    assert "hp_metric" not in board.Tags()["scalars"]
    (file,) = (run_dir / "tensorboard").glob("events*")
    written = [value.tag for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    for tag in (metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG):
        assert written.count(tag) == 1


def test_runs_of_a_sweep_have_the_same_hyperparameters() -> None:
    rows = []
    distillers = ["defeat", "neck", "fgfi", "tadf", "pkd", "cwd"]
    for distiller in distillers:
        words = {"distiller": distiller, "optim.optimizer.lr": "1e-3", "distiller.balance": None, "seed": "3"}
        words |= {"run_dir": "runs/x", "data.root": "scenes", "callbacks.last.every_n_steps": "5"}
        overrides = [f"distiller={distiller}", "optim.optimizer.lr=1e-3", "seed=3", "run_dir=x"]
        config = to_plain(compose_config("train", ["+experiment=scenes", *overrides]))
        rows.append(hyperparameters(dict(leaves(config)), config["distiller"], words))
    assert len({tuple(row) for row in rows}) == 1
    assert [row["distiller"] for row in rows] == distillers
    assert [row["head.object_weight"] > 0 for row in rows] == [True, False, False, True, False, False]  # type: ignore[operator]
    assert [row["other_weights"] for row in rows[3:]] == ["null", "pkd.weight=24.0", "cwd.weight=20.0"]
    assert all((row["optim.optimizer.lr"], row["seed"]) == (1e-3, 3) for row in rows)
    assert not {"run_dir", "data.root", "callbacks.last.every_n_steps"} & set(rows[0])


def test_curves_and_confusions_follow_each_validation(board: EventAccumulator, run_dir: Path) -> None:
    curves = [tag for tag in board.Tags()["tensors"] if tag.startswith("PR_")]
    means = [f"PR_all_classes/mean, IoU {iou}" for iou in ("0.50", "0.75")]
    assert sorted(curves)[:2] == means
    assert board.Tensors(means[0])[0].step == 2
    assert "confusion" in board.Tags()["images"]
    with (run_dir / "confusion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    detections = read_detections(run_dir / "detections.safetensors")
    truth = torch.cat([image.true_labels[~image.ignore] for image in detections.images.values()]).tolist()
    for label, row in enumerate(rows[:-1], start=1):
        assert row.pop("class") == detections.classes[label - 1]
        assert sum(map(int, row.values())) == truth.count(label)


def test_pictures_are_small_and_of_images_with_objects(board: EventAccumulator, run_dir: Path) -> None:
    images = read_detections(run_dir / "detections.safetensors").images.values()
    drawn = range(1, 1 + min(2, sum(not bool(image.ignore.all()) for image in images)))
    tags = [tag for tag in board.Tags()["images"] if tag.startswith(("detections", "differences"))]
    kinds = ("detections", "differences_backbone", "differences_neck")
    assert sorted(tags) == [f"{kind}/{number}" for kind in kinds for number in drawn]
    for tag in tags:
        (event,) = board.Images(tag)
        with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
            assert picture.size == (event.width, event.height)
        assert event.step == 2
        assert len(event.encoded_image_string) < 300_000


def test_tensorboard_is_told_the_counts_of_a_curve(tmp_path: Path) -> None:
    # five objects; by falling score: hit 0.9, hit 0.8, false 0.7, hit 0.5, false 0.25
    precision = np.where(np.arange(101) <= 40, 1.0, np.where(np.arange(101) <= 60, 0.75, 0.0))
    scores = np.select([np.arange(101) <= n for n in (20, 40, 60)], [0.9, 0.8, 0.5])
    board = TensorBoard(tmp_path, name="", version="")
    board.show_curves({"x/y": PrecisionRecall(precision, scores, 5)}, 7)
    board.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("x/y")
    hits, false, _, missed, *_ = make_ndarray(event.tensor_proto)  # (6, 101)
    for threshold, counts in {
        0: (3, 1, 2),
        50: (3, 1, 2),
        51: (2, 0, 3),
        85: (1, 0, 4),
        95: (0, 0, 5),
    }.items():
        assert (hits[threshold], false[threshold], missed[threshold]) == pytest.approx(counts)


def test_the_texts_say_how_the_run_was_made(board: EventAccumulator, run_dir: Path, teacher: Path) -> None:
    tags = [tag for tag in board.Tags()["tensors"] if tag.endswith("/text_summary")]
    texts = {tag.split("/")[1]: board.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags}
    assert teacher.name in texts["2 teacher"]
    assert re.search(r"SHA-256 \| [0-9a-f]{64}", texts["2 teacher"])
    assert re.search(r"train \| .* \| 8 \| \d+ \| [0-9a-f]{64}", texts["3 data"])
    assert texts["5 gradients"] == (run_dir / "gradients.md").read_text()
