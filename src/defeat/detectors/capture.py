"""Forward hooks capture what a detector computes on its way, and are removed when the forward ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

from defeat.errors import ConfigError
from defeat.types import Target


@dataclass
class Captured:
    """Tensors of one forward of a detector, filled in while it runs. B images, padded to H x W pixels."""

    images: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, 3, H, W) normalised, resized, padded: what the backbone saw."""
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    """(height, width) in pixels before padding."""
    targets: list[Target] = field(default_factory=list)
    """Boxes in pixels of the resized images."""
    stages: dict[str, Tensor] = field(default_factory=dict)
    """Backbone stages, (B, C, H / stride, W / stride) each."""
    neck: dict[str, Tensor] = field(default_factory=dict)
    """Pyramid levels, likewise."""
    proposals: list[Tensor] = field(default_factory=list)
    """Sampled proposals, (N_i, 4) xyxy pixels of the resized image; empty for one-stage detectors."""
    class_logits: Tensor | None = None
    """(sum N_i, K + 1) on those proposals."""
    anchors: list[Tensor] = field(default_factory=list)
    """All anchors of a one-stage detector, (A, 4) xyxy pixels per image; empty for two-stage detectors."""
    anchor_logits: Tensor | None = None
    """(B, A, K + 1) on those anchors."""


class Level(NamedTuple):
    """One feature map of a detector."""

    name: str
    stride: int
    """Pixels of the resized image per cell."""
    channels: int
    anchors: tuple[tuple[float, float, float, float], ...] = ()
    """The anchors of the cell at the origin, xyxy pixels: those of cell (y, x) are shifted by its multiple of
    the stride. None on backbone stages."""


Head = Literal["proposals", "anchors", "points"]
"""What a detector classifies: Faster R-CNN proposals, RetinaNet anchors, FCOS points."""

MIN_OBJECT_CELLS: dict[Head, float] = {"proposals": 14.0, "anchors": 4.0, "points": 8.0}
"""The least cells that an object spans on the level it belongs to (smaller ones fall to the finest level).

14 for Faster R-CNN is DeFeat's rule, 56 pixels at stride 4, and that by which its box head chooses a level to
pool from. 4 for RetinaNet is the side of its smallest anchor, the others of a level following within the
octave. 8 for FCOS: a level regresses distances up to 8 strides, half the side of an object captured from its
centre, so the finest level takes objects up to 16 cells.
"""


BLANK_SIDE = 256
"""Pixels: a multiple of every stride up to 256."""

_MAPS: WeakKeyDictionary[nn.Module, tuple[tuple[Level, ...], tuple[Level, ...]]] = WeakKeyDictionary()
"""Stages and neck of each backbone that was looked at."""


class DetectorSpec(NamedTuple):
    """The maps and the head that a detector offers to distil; maps finest first."""

    stages: tuple[Level, ...]
    neck: tuple[Level, ...]
    head: Head
    fixed_strides: bool = False
    """Whether its anchors are the strides of the levels apart, whatever the size of the batch; else strides
    are derived from that, as in torchvision."""
    size_divisible: int = 1
    """Pixels, of which the sides of its batches are multiples."""

    @property
    def whole_strides(self) -> bool:
        """Whether strides that are derived from the size of its batches are always those of the levels."""
        return self.size_divisible % max(level.stride for level in self.neck) == 0

    @property
    def min_object_cells(self) -> float:
        """See :data:`MIN_OBJECT_CELLS`."""
        return MIN_OBJECT_CELLS[self.head]


@contextmanager
def capture(detector: nn.Module) -> Iterator[Captured]:
    """Record the tensors of the forward that runs inside the ``with`` block.

    The hooks are gone afterwards, on an exception too, and nothing else keeps the tensors alive.
    """
    captured = Captured()
    handles: list[RemovableHandle] = []
    try:
        for name, hook in _hooks(captured).items():
            module = _find(detector, name)
            if module is not None:
                handles.append(module.register_forward_hook(hook))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _hooks(captured: Captured) -> dict[str, Callable[[nn.Module, Any, Any], None]]:
    def transform(module: nn.Module, args: Any, output: Any) -> None:
        image_list, targets = output
        captured.images, captured.image_sizes = image_list.tensors, list(image_list.image_sizes)
        captured.targets = targets or []

    def body(module: nn.Module, args: Any, output: Any) -> None:
        captured.stages = _as_dict(output)

    def neck(module: nn.Module, args: Any, output: Any) -> None:
        captured.neck = _as_dict(output)

    def pool(module: nn.Module, args: Any, output: Any) -> None:
        captured.proposals = list(args[1])

    def predictor(module: nn.Module, args: Any, output: Any) -> None:
        captured.class_logits = output[0]

    def anchors(module: nn.Module, args: Any, output: Any) -> None:
        captured.anchors = list(output)

    def classifier(module: nn.Module, args: Any, output: Any) -> None:
        captured.anchor_logits = output

    return {
        "transform": transform,
        "backbone.body": body,
        "backbone": neck,
        "roi_heads.box_roi_pool": pool,
        "roi_heads.box_predictor": predictor,
        "anchor_generator": anchors,
        "head.classification_head": classifier,
    }


def _as_dict(output: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"0": output} if isinstance(output, Tensor) else dict(output)


def _find(detector: nn.Module, name: str) -> nn.Module | None:
    try:
        return detector.get_submodule(name)
    except AttributeError:
        return None


def inspect_detector(detector: nn.Module) -> DetectorSpec:
    """Find a detector's feature maps, their strides, channels and anchors, by looking at a blank image.

    The image is computed once in the life of a backbone, whose maps are the same ever after.

    Raises:
        ConfigError: see :func:`head_of`.
    """
    head = head_of(detector)
    backbone = detector.get_submodule("backbone")
    if backbone not in _MAPS:
        captured = capture_blank_image(detector)
        side = captured.images.shape[-1]
        _MAPS[backbone] = _levels(captured.stages, side), _levels(captured.neck, side)
    stages, neck = _MAPS[backbone]
    generator = _find(detector, "rpn.anchor_generator") or _find(detector, "anchor_generator")
    anchors = _cell_anchors(generator)
    if len(anchors) == len(neck):
        neck = tuple(level._replace(anchors=cell) for level, cell in zip(neck, anchors, strict=True))
    transform: Any = detector.get_submodule("transform")
    return DetectorSpec(stages, neck, head, _has_fixed_strides(generator), transform.size_divisible)


@torch.no_grad()
def capture_blank_image(detector: nn.Module) -> Captured:
    """Run a detector's backbone on a blank image of :data:`BLANK_SIDE`; its state stays as it is."""
    blank = next(detector.parameters()).new_zeros(1, 3, BLANK_SIDE, BLANK_SIDE)
    modes = {module: module.training for module in detector.modules()}
    detector.eval()  # batch statistics must not move
    try:
        with capture(detector) as captured:
            detector.get_submodule("backbone")(blank)
    finally:
        for module, training in modes.items():
            module.training = training
    captured.images = blank
    return captured


def _levels(maps: Mapping[str, Tensor], side: int) -> tuple[Level, ...]:
    levels = (Level(name, side // x.shape[-1], x.shape[1]) for name, x in maps.items())
    return tuple(sorted(levels, key=lambda level: level.stride))


def head_of(detector: nn.Module) -> Head:
    """Tell by a detector's class what it classifies.

    Raises:
        ConfigError: it is none of torchvision's classes of detectors and of no subclass.
    """
    if isinstance(detector, GeneralizedRCNN):
        return "proposals"
    if isinstance(detector, RetinaNet | SSD):
        return "anchors"
    if isinstance(detector, FCOS):
        return "points"
    raise ConfigError(
        f"{type(detector).__name__} is no Faster R-CNN, RetinaNet, SSD or FCOS of torchvision's: only these "
        "and their subclasses can be trained and distilled"
    )


def _cell_anchors(generator: nn.Module | None) -> list[tuple[tuple[float, float, float, float], ...]]:
    levels: list[Tensor] = getattr(generator, "cell_anchors", [])
    return [tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in level.tolist()) for level in levels]


def _has_fixed_strides(generator: nn.Module | None) -> bool:
    """Tell whether the anchors of neighbouring cells are apart where the strides that follow from the batch
    are 0."""
    if not isinstance(generator, AnchorGenerator):
        return False
    levels = len(generator.cell_anchors)
    first, *_ = generator.grid_anchors([(1, 2)] * levels, [(0, 0)] * levels)  # (2 A, 4)
    left, right = first.chunk(2)
    return not left.equal(right)
