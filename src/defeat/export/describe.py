"""What a user of a graph must know: classes, the size and the padding of images, thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import defeat
from defeat.detectors.capture import head_of
from defeat.export.student import TrainedStudent
from defeat.io.atomic_write import write_text


def describe(student: TrainedStudent, *, nms: bool = True) -> dict[str, Any]:
    """Describe a student's graph for those who run it, in plain containers.

    It stands in the metadata of an ONNX file, and in a JSON file beside every graph.

    Args:
        student: of which the graph is.
        nms: as the graph was made.
    """
    model = cast(Any, student.detector)
    transform = model.transform
    head = model.roi_heads if head_of(model) == "proposals" else model
    return {
        "project": f"defeat {defeat.__version__}",
        "checkpoint_sha256": student.sha256,
        "detector": type(model).__name__,
        "classes": [
            {"label": label, "name": name, "category_id": category}
            for label, (name, category) in enumerate(
                zip(student.classes, student.class_ids, strict=True), start=1
            )
        ],
        "preprocessing": {
            "exif_orientation": "ignored" if _data(student).get("exif") == "ignore" else "applied",
            "color_order": "RGB",
            "value_range": [0.0, 1.0],
            "normalization": "inside the graph",
            "min_size": int(transform.min_size[-1]),
            "max_size": int(transform.max_size),
            "fixed_size": list(transform.fixed_size) if transform.fixed_size else None,
            "resize": "scale = min(min_size / shorter side, max_size / longer side), side = floor(side * "
            "scale); where fixed_size is given, it is the width and the height instead",
            "interpolation": "bilinear without antialiasing, pixel centres at half",
            "pad_multiple": int(transform.size_divisible),
            "padding": "right and bottom, any value",
        },
        "thresholds": {
            "score": float(head.score_thresh),
            "nms_iou": float(head.nms_thresh),
            "detections_per_image": int(head.detections_per_img),
        },
        "inputs": {
            "images": "(batch, 3, height, width) float32",
            "sizes": "(batch, 2) int64: height and width of each resized image before padding",
        },
        "outputs": _outputs(nms),
    }


def write_description(graph: Path, described: Mapping[str, Any]) -> None:
    """Write a description beside a graph: ``student.json`` for ``student.onnx``."""
    write_text(graph.with_suffix(".json"), json.dumps(described, ensure_ascii=False, indent=2) + "\n")


def _data(student: TrainedStudent) -> Mapping[str, Any]:
    return (student.config or {}).get("data") or {}


def _outputs(nms: bool) -> dict[str, str]:
    if not nms:
        return {
            "boxes": "(batch, N, 4) float32: candidates, x1 y1 x2 y2 in pixels of the resized image",
            "scores": "(batch, N) float32",
            "labels": "(batch, N) int64: label of a class, 0 for background",
        }
    return {
        "boxes": "(batch, D, 4) float32: x1 y1 x2 y2 in pixels of the resized image, best first",
        "scores": "(batch, D) float32",
        "labels": "(batch, D) int64: label of a class; rows from count on are zeros",
        "count": "(batch,) int64: detections of each image",
    }
