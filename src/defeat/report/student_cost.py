"""The cost of a student's inference: parameters, and operations of its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from defeat.config import build
from defeat.detectors.weights.run_config import check_targets
from defeat.errors import ConfigError

DEFINITION = (
    "2 for each multiply-add of convolutions and matrix products on one image of the largest test size, by "
    "backbone, pyramid and head; of two-stage detectors by the RPN's head, and by the box head on as many "
    "proposals as the test keeps at most"
)
"""Operations that the FLOPs count: those of the architecture and its settings, whatever is in the picture."""


class Cost(NamedTuple):
    """The cost of one image."""

    parameters: int
    """Number of parameters, frozen ones included."""
    flops: int
    """See :data:`DEFINITION`."""
    height: int
    """Height of the padded image, pixels."""
    width: int


def student_cost(node: Mapping[str, Any], classes: Sequence[str], *, trust: bool = False) -> Cost:
    """Build a student without weights or memory and count.

    Args:
        node: the node ``student`` of a run's configuration, which may come from anybody.
        classes: K class names.
        trust: build it by whatever functions it names, rather than by those of this package and torchvision.

    Raises:
        ConfigError: it cannot be built, or is of no kind that is known here.
        WeightsError: it names other functions, and ``trust`` is not given.
    """
    if not trust:
        check_targets(dict(node), "student", "the run", "--trust")
    with torch.device("meta"):
        built = build(dict(node), classes=list(classes), weights=None, backbone_weights=None)
        return count(built.model.eval())


def count(detector: nn.Module) -> Cost:
    """Count the cost of a torchvision detector in eval mode, on the device it is on.

    Raises:
        ConfigError: it has neither RPN and RoI heads nor a head, or they do not take what torchvision's take.
    """
    model = cast(Any, detector)
    try:
        height, width = _test_size(model.transform)
        device = next(detector.parameters()).device
        image = torch.empty(1, 3, height, width, device=device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            _forward(model, image)
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the FLOPs of {type(detector).__name__} cannot be counted ({reason})") from error
    return Cost(sum(p.numel() for p in detector.parameters()), int(counter.get_total_flops()), height, width)


def _forward(model: Any, image: Tensor) -> None:
    """Run the network, part by part: what lies between depends on the picture."""
    maps = model.backbone(image)
    levels = [maps] if isinstance(maps, Tensor) else list(maps.values())
    if not hasattr(model, "rpn"):
        model.head(levels)
        return
    model.rpn.head(levels)
    heads, proposals = model.roi_heads, model.rpn.post_nms_top_n()
    pooled = image.new_empty(proposals, levels[0].shape[1], *heads.box_roi_pool.output_size)
    heads.box_predictor(heads.box_head(pooled))


def _test_size(transform: Any) -> tuple[int, int]:
    """Height and width of the largest test image, a landscape one, as the model pads it."""
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
    else:
        height, width = min(transform.min_size[-1], transform.max_size), transform.max_size
    multiple = transform.size_divisible
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple
