"""The pixels that a network expects: order of the channels, mean and deviation, folded into its first layer.

torchvision feeds (x / 255 - mean) / std in the order red, green, blue. The other frameworks subtract the same
means, in units of 0 to 255, and divide by ``std`` or by 1, in either order; all of them pad with zeros
afterwards. A factor for each channel and the order are all that is left, and the first convolution takes them
exactly:
``W[:, c] = W_source[:, order(c)] * 255 * std_torchvision[c] / std_source[c]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from defeat.errors import WeightsError

MEAN = (123.675, 116.28, 103.53)
"""Red, green, blue, from 0 to 255: 255 times torchvision's 0.485, 0.456 and 0.406."""

_TORCHVISION_STD = (0.229, 0.224, 0.225)

_SCALED = (58.395, 57.12, 57.375)
"""255 times torchvision's deviations."""

STEM = "backbone.body.conv1.weight"


class Style(NamedTuple):
    """Conventions of a network that its weights' names and shapes do not show."""

    bgr: bool
    """Whether the channels of an image are blue, green, red, as OpenCV has them."""
    std: Sequence[float]
    """By which pixels from 0 to 255 are divided: red, green, blue."""
    stride_in_1x1: bool
    """Whether the stride of a bottleneck is in its first 1x1 convolution, as in Caffe, or in the 3x3."""
    evidence: str = ""
    """The place from which this is known."""

    def __str__(self) -> str:
        order = "BGR" if self.bgr else "RGB"
        std = "1" if set(self.std) == {1.0} else "/".join(f"{value:g}" for value in self.std)
        return f"{order} pixels with std {std}, stride in the {'1x1' if self.stride_in_1x1 else '3x3'}"


STYLES: Mapping[str, Style] = {
    "pytorch": Style(False, _SCALED, False),
    "caffe": Style(True, (1.0, 1.0, 1.0), True),
    "bgr": Style(True, _SCALED, False),  # the ResNeXt-101 32x8d of both frameworks
}
"""What a user may name where a file does not show it."""


def find_style(kind: str, backbone: str, path: Path, text: str, chosen: str) -> Style:
    """Tell a network's conventions, by the user, its configuration, its file's name or its framework.

    Args:
        kind: ``mmdetection`` or ``detectron2``.
        backbone: as the builders call it.
        path: of the file, whose name says ``caffe`` in mmdetection's model zoo.
        text: of the configuration in the file; empty where it has none.
        chosen: one of :data:`STYLES`, or ``auto``.

    Raises:
        WeightsError: its configuration has another mean than ImageNet's, which cannot be folded.
    """
    if chosen != "auto":
        return STYLES[chosen]._replace(evidence=f"style={chosen}")
    if backbone == "resnext101_32x8d" or (kind == "detectron2" and backbone.startswith("resnext")):
        usual = STYLES["bgr"]._replace(evidence="the ResNeXt-101 32x8d of both frameworks was made in Caffe2")
    elif kind == "detectron2":
        usual = STYLES["caffe"]._replace(evidence="what detectron2's model zoo has")
    elif "caffe" in path.name:
        usual = STYLES["caffe"]._replace(evidence="the name of the file")
    else:
        usual = STYLES["pytorch"]._replace(
            evidence="what mmdetection's model zoo has without caffe in the name"
        )
    return _configured(text, usual, path)


def _configured(text: str, usual: Style, path: Path) -> Style:
    """Read ``style``, ``mean``, ``std`` and the order of channels out of mmdetection's configuration."""
    mean, std = _numbers("mean", text), _numbers("std", text)
    order = re.search(r"\b(?:bgr_)?to_rgb\W{1,4}(True|False)", text)
    stride = re.search(r"\bstyle\W{1,6}(pytorch|caffe)\b", text)
    if mean is None and std is None and stride is None:
        return usual
    bgr = usual.bgr if order is None else order[1] == "False"
    if mean is not None:
        check_mean(mean[::-1] if bgr else mean, f"{path}: img_norm_cfg mean", "in its configuration")
    if std is not None:
        usual = usual._replace(std=std[::-1] if bgr else std)
    in_1x1 = usual.stride_in_1x1 if stride is None else stride[1] == "caffe"
    return usual._replace(bgr=bgr, stride_in_1x1=in_1x1, evidence="the configuration in the file")


def _numbers(key: str, text: str) -> tuple[float, ...] | None:
    number = r"\s*(\d+\.?\d*)\s*"
    found = re.search(rf"\b{key}\W{{1,4}}{number},{number},{number}\W", text)
    return None if found is None else tuple(map(float, found.groups()))


def check_mean(mean: Sequence[float], named: str, where: str) -> None:
    """Refuse another mean than ImageNet's: the shift that is left is not exact where an image is padded."""
    if any(abs(value - usual) > 0.01 for value, usual in zip(mean, MEAN, strict=True)):
        raise WeightsError(
            f"{named}: {', '.join(f'{value:g}' for value in mean)} {where} is another mean than ImageNet's "
            f"{', '.join(map(str, MEAN))}, and the difference cannot be folded exactly into the first "
            "convolution: take a model that was trained with ImageNet's"
        )


def check_buffers(tensors: Mapping[str, Tensor], style: Style, path: Path) -> None:
    """Compare the ``pixel_mean`` and ``pixel_std`` that old files of detectron2 hold with what is assumed.

    Raises:
        WeightsError: they differ.
    """
    mean, std = tensors.get("pixel_mean"), tensors.get("pixel_std")
    order = slice(None, None, -1 if style.bgr else 1)
    if mean is not None and mean.numel() == 3:
        check_mean(mean.flatten().tolist()[order], f"{path}: pixel_mean", "in the order red, green, blue")
    if std is not None and std.numel() == 3:
        found = std.flatten().tolist()[order]
        if any(abs(value - usual) > 0.01 for value, usual in zip(found, style.std, strict=True)):
            raise WeightsError(
                f"{path}: pixel_std is {', '.join(f'{value:g}' for value in found)}, but {style} is assumed "
                f"({style.evidence}): give style= as one of {', '.join(STYLES)}"
            )


def fold_stem(weight: Tensor, style: Style) -> Tensor:
    """Make the first convolution take torchvision's normalised RGB.

    Args:
        weight: (64, 3, 7, 7) as trained.
        style: of the network that it is from.
    """
    factor = torch.tensor(
        [255 * ours / theirs for ours, theirs in zip(_TORCHVISION_STD, style.std, strict=True)],
        dtype=torch.float64,
        device=weight.device,
    )
    ordered = weight.flip(1) if style.bgr else weight  # (64, 3, 7, 7), RGB
    return (ordered.double() * factor[:, None, None]).to(weight.dtype)


def statistics_warning(tensors: Mapping[str, Tensor], style: Style) -> str | None:
    """Say where the statistics behind the first convolution speak against the style; None where they do not.

    Weights that were converted from Caffe have their statistics folded away: a mean of 0 and a variance of 1.
    """
    mean, variance = (tensors.get(f"backbone.body.bn1.{key}") for key in ("running_mean", "running_var"))
    if mean is None or variance is None or mean.is_meta:
        return None
    folded = bool((mean == 0).all()) and bool(((variance - 1).abs() < 1e-4).all())
    if folded and not style.bgr:
        return (
            "the first normalisation has mean 0 and variance 1, as weights that come from Caffe do, but "
            f"{style} is assumed: give style=caffe if it is one of those"
        )
    return None


def plain_text(meta: Any) -> str:
    """Return the text of the configuration that mmdetection stores: ``config`` in 2.x, ``cfg`` in 3.x."""
    if not isinstance(meta, Mapping):
        return ""
    return next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
