"""A checksum that tells whether two runs saw the same data."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from defeat.types import Annotations


def fingerprint(annotations: Annotations) -> str:
    """SHA-256, in hex, over classes, class ids, image ids, sizes, boxes, labels and ignore flags, in order.

    Where the files lie does not enter, nor do their pixels.
    """
    digest = hashlib.sha256()
    header = [list(annotations.classes), list(annotations.class_ids)]
    digest.update(json.dumps(header).encode())
    for record in annotations.records:
        # the number of boxes makes where one record ends unambiguous
        head = [record.image_id, record.width, record.height, len(record.boxes)]
        digest.update(json.dumps(head).encode())
        digest.update(np.ascontiguousarray(record.boxes, dtype="<f4").tobytes())
        digest.update(np.ascontiguousarray(record.labels, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(record.ignore, dtype="|b1").tobytes())
    return digest.hexdigest()
