"""What holds for every data set that was read, whatever its files were like."""

from __future__ import annotations

import numpy as np

from defeat.data import read_image
from defeat.data.boxes import MIN_SIDE
from defeat.errors import DataError
from defeat.types import Annotations
from tests.helpers.trials import refused


def check_records(data: Annotations) -> None:
    """Boxes in their images and not empty, labels of classes, areas that can be compared."""
    ids = [record.image_id for record in data.records]
    assert len(set(ids)) == len(ids)
    for record in data.records:
        assert len(record.boxes) == len(record.labels) == len(record.ignore) == len(record.area)
        assert (record.boxes >= 0).all()
        assert (record.boxes[:, 2] <= record.width).all()
        assert (record.boxes[:, 3] <= record.height).all()
        assert (record.boxes[:, 2:] - record.boxes[:, :2] >= MIN_SIDE).all()
        assert ((record.labels >= 1) & (record.labels <= len(data.classes))).all()
        assert np.isfinite(record.area).all()
        assert (record.area >= 0).all()


def check_pictures(data: Annotations) -> None:
    for record in data.records:
        try:
            picture = read_image(record.path, (record.width, record.height))
        except DataError as error:
            refused(error, str(record.path))
        else:
            assert picture.shape == (3, record.height, record.width)
