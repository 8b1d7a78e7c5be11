"""Detection metrics over a whole data set, synchronised over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from defeat.evaluation.coco_metrics import (
    DEFAULT_BACKEND,
    DEFAULT_MAX_DETS,
    Backend,
    CocoCurves,
    check_backend,
    check_max_dets,
    coco_curves,
    metrics_of_curves,
)
from defeat.evaluation.evaluation import Evaluation
from defeat.evaluation.image_result import ImageResult
from defeat.evaluation.voc_metrics import voc_metrics
from defeat.types import Prediction, Target

_IMAGE_COLUMNS = 3  # index, number of detections, number of ground truth boxes
_DETECTION_COLUMNS = 6  # x1, y1, x2, y2, label, score
_TRUTH_COLUMNS = 7  # x1, y1, x2, y2, label, ignore, area
_LABEL = 4


def evaluate_images(
    images: Sequence[ImageResult],
    classes: Sequence[str],
    backend: Backend = DEFAULT_BACKEND,
    max_dets: int = DEFAULT_MAX_DETS,
) -> Evaluation:
    """Compute all metrics.

    Args:
        images: any number of images, none twice.
        classes: K names; label i stands for ``classes[i - 1]``.
        backend: the engine of the COCO metrics.
        max_dets: detections that count for them, of an image and class.
    """
    return _evaluation(coco_curves(images, len(classes), backend, max_dets), images, classes)


def _evaluation(curves: CocoCurves, images: Sequence[ImageResult], classes: Sequence[str]) -> Evaluation:
    coco, per_class = metrics_of_curves(curves, classes)
    return Evaluation(coco=coco, per_class=per_class, voc=voc_metrics(images, classes), images=len(images))


class DetectionMetrics(Metric):
    """COCO and VOC metrics over all images since the last reset, over all ranks.

    An image is known by ``Target.index``: figures do not depend on the order of the images or on the rank
    that saw them, and an image that comes twice counts once. ``DistributedSampler`` repeats images to give
    each rank the same number, so without this the figures would depend on the number of ranks.

    What is kept lies in main memory, about 60 bytes a box, and adds nothing to a ``state_dict``. It is kept
    as flat float64 rows, which are concatenated before they are gathered, so ranks may hold different numbers
    of images, or none. ``MeanAveragePrecision`` by itself gathers image by image and hangs in that case.

    Args:
        classes: K names; label i stands for ``classes[i - 1]``.
        backend: engine of the COCO metrics, ``faster_coco_eval`` or ``pycocotools``, with equal results.
        max_dets: detections that count for them, of an image and class.

    Raises:
        ConfigError: there is no such engine, or ``max_dets`` is below 10.
    """

    full_state_update = False
    is_differentiable = False
    images: list[Tensor]
    detections: list[Tensor]
    truths: list[Tensor]

    def __init__(
        self, classes: Sequence[str], backend: str = DEFAULT_BACKEND, max_dets: int = DEFAULT_MAX_DETS
    ) -> None:
        super().__init__(dist_sync_fn=_gather)
        self.classes = tuple(classes)
        self.backend = check_backend(backend)
        self.max_dets = check_max_dets(max_dets)
        self.computed: dict[int, ImageResult] = {}
        self.curves: CocoCurves | None = None
        for name in ("images", "detections", "truths"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], targets: list[Target]) -> None:
        """Add the detections of some images, on any device.

        Raises:
            ValueError: the lists differ in length, or a label is not one of 1..K.
        """
        if len(predictions) != len(targets):
            raise ValueError(
                f"expected a prediction for each target, got {len(predictions)} for {len(targets)}"
            )
        if not targets:
            return
        # Two transfers a batch, not seven an image: each waits for the device.
        detections = torch.cat([_rows(p["boxes"], p["labels"], p["scores"]) for p in predictions])
        detections = detections.cpu().double()
        truths = torch.cat([_rows(t["boxes"], t["labels"], t["ignore"], t["area"]) for t in targets])
        index = torch.stack([target["index"] for target in targets]).to(truths)
        rows = torch.cat([truths.flatten(), index]).cpu().double()
        truths, index = rows.split([truths.numel(), len(targets)])
        self._check_labels("predicted", detections[:, _LABEL])
        self._check_labels("target", truths.reshape(-1, _TRUTH_COLUMNS)[:, _LABEL])
        counts = [(len(p["boxes"]), len(t["boxes"])) for p, t in zip(predictions, targets, strict=True)]
        self.images.append(torch.column_stack([index, torch.tensor(counts, dtype=index.dtype)]).flatten())
        self.detections.append(detections.flatten())
        self.truths.append(truths)

    def compute(self) -> Evaluation:
        """Return the figures over the images of all ranks, the same on each rank.

        What they were computed from stays until the next call: in ``computed``, by position in the data set,
        and the curves of precision in ``curves``.
        """
        self.computed = self._image_results()
        images = list(self.computed.values())
        self.curves = coco_curves(images, len(self.classes), self.backend, self.max_dets)
        return _evaluation(self.curves, images, self.classes)

    def _check_labels(self, name: str, labels: Tensor) -> None:
        if labels.numel() > 0 and not 1 <= labels.min() <= labels.max() <= len(self.classes):
            wrong = labels[(labels < 1) | (labels > len(self.classes))].unique().long().tolist()
            raise ValueError(f"{name} labels must be in 1..{len(self.classes)}, got {wrong}")

    def _image_results(self) -> dict[int, ImageResult]:
        """Undo the flattening; one result for each different image, in order of its index."""
        index, detections, truths = _table(self.images, _IMAGE_COLUMNS).long().unbind(1)
        results: dict[int, ImageResult] = {}
        for key, detected, true in zip(
            index.tolist(),
            _table(self.detections, _DETECTION_COLUMNS).split(detections.tolist()),
            _table(self.truths, _TRUTH_COLUMNS).split(truths.tolist()),
            strict=True,
        ):
            results.setdefault(key, _image_result(detected, true))
        return {key: results[key] for key in sorted(results)}


def _rows(boxes: Tensor, *columns: Tensor) -> Tensor:
    """Lay (N, 4) boxes and (N,) columns side by side, on their device and exactly: float32 or wider."""
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    return torch.column_stack([boxes.reshape(-1, 4).to(dtype), *(column.to(dtype) for column in columns)])


def _table(state: list[Tensor] | Tensor, columns: int) -> Tensor:
    """Return the (N, columns) rows of a state: a list before synchronisation, one tensor after it."""
    flat = [state] if isinstance(state, Tensor) else state
    empty = torch.empty(0, dtype=torch.float64)
    return torch.cat([empty, *(rows.cpu() for rows in flat)]).reshape(-1, columns)


def _image_result(detected: Tensor, true: Tensor) -> ImageResult:
    return ImageResult(
        boxes=detected[:, :4],
        scores=detected[:, 5],
        labels=detected[:, _LABEL].long(),
        true_boxes=true[:, :4],
        true_labels=true[:, _LABEL].long(),
        ignore=true[:, 5].bool(),
        area=true[:, 6],
    )


def _gather(rows: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the flat rows of all ranks, in order of rank.

    NCCL moves nothing but CUDA memory. A rank without images comes with torchmetrics' empty float32 tensor.
    """
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    return [part.cpu() for part in gather_all_tensors(rows.to(device, torch.float64), group)]
