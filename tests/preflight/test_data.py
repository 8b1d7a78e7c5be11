"""The sample of the data, and what is counted over all annotations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defeat.preflight.data import check_data, draw
from defeat.preflight.finding import Finding
from defeat.training.run import Run
from defeat.types import Annotations, Problem, Record
from tests.helpers.built_runs import built_run, severe


def look(run: Run, images: int = 12, seconds: float = 100) -> Finding:
    return check_data(run, images=images, seconds=seconds)


def spoil(run: Run, split: Any, change: Callable[[Record], Record]) -> Annotations:
    """Change all records of a split; what it was comes back."""
    before = run.data.annotations[split]
    run.data.annotations[split] = before._replace(records=[change(record) for record in before.records])
    return before


def test_healthy_data_is_counted(healthy: Run) -> None:
    found = look(healthy)
    assert (found.result, found.problems) == ("ok", [])
    assert "train 48 images (" in found.summary
    assert "12 and 12 decoded" in found.summary
    assert found.figures["train_images"] == 12
    assert found.figures["val_boxes"] == sum(len(sample[1]["boxes"]) for sample in _first(healthy, 12))


def _first(run: Run, images: int) -> list[Any]:
    loader: Any = run.data.val_dataloader()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    return [loader.dataset[int(i)] for i in order[:images]]


def test_the_time_bounds_the_images(healthy: Run) -> None:
    assert "1 and 1 decoded" in look(healthy, seconds=0).summary


def test_the_batches_are_those_of_the_training(healthy: Run) -> None:
    drawn = draw(healthy, 2)
    loader = iter(healthy.data.train_dataloader())
    for mine in drawn.batches:
        theirs = next(loader)
        assert all(map(torch.equal, mine.images, theirs.images))
        assert [int(t["index"]) for t in mine.targets] == [int(t["index"]) for t in theirs.targets]
    assert drawn.image_seconds > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r._replace(boxes=r.boxes + np.float32(100)),  # beyond 128 pixels
        lambda r: r._replace(labels=r.labels + 8),
    ],
)
def test_boxes_outside_and_unknown_labels_are_found(built: Run, change: Any) -> None:
    spoil(built, "val", change)
    text = severe(look(built))
    assert "of 12 val images have a box outside of the image or a label that is no class: image id" in text


def test_what_the_readers_found_is_repeated(built: Run) -> None:
    problem = Problem("no object is of class square", "see", severe=False)
    built.data.annotations["train"] = built.data.annotations["train"]._replace(problems=(problem,))
    found = look(built)
    assert found.result == "warning"
    assert list(found.problems) == [problem]


def test_images_in_both_splits_are_counted(built: Run) -> None:
    train, val = (built.data.annotations[split] for split in ("train", "val"))  # type: ignore[index]
    both = val._replace(records=[*val.records[:-3], *train.records[:3]])
    built.data.annotations["val"] = both
    (problem,) = look(built).problems
    assert not problem.severe
    assert "training and validation share 3 pictures" in problem.cause


def test_objects_that_the_resize_makes_tiny_are_a_warning(tmp_path: Path, pictures: Path) -> None:
    # Scenes of 128 pixels at 16: a cell of 4 x 4 pixels was 32 x 32.
    small = built_run(tmp_path, pictures, "student.model.min_size=16", "student.model.max_size=16")
    found = look(small)
    assert {p.severe for p in found.problems} == {False}
    assert "train objects are smaller than a cell of 4 x 4 pixels" in found.problems[0].cause
    assert "raise student.model.min_size" in found.problems[0].remedy
