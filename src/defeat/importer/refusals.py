"""Networks that no detector of torchvision computes, known by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from defeat.errors import WeightsError
from defeat.io.text import quote

_PLAIN = "take Faster R-CNN, Mask R-CNN or RetinaNet on a plain ResNet or ResNeXt with a feature pyramid"

_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        r".*_momentum|blobs",
        "Caffe2 (Detectron 1) has background first and boxes that are a pixel larger",
        "take the model of detectron2's zoo",
    ),
    (
        r".*\b(conv_offset|conv2_offset|offset)\.(weight|bias)",
        "deformable convolutions are not in these networks here",
        _PLAIN,
    ),
    (
        r"roi_head\.bbox_head\.\d+\..*|roi_heads\.box_predictor\.\d+\..*",
        "a cascade has several box heads in a row",
        "take the Faster R-CNN or Mask R-CNN of the same backbone",
    ),
    (
        r"roi_heads\.res5\..*|roi_head\.shared_head\..*",
        "a C4 network has no feature pyramid, and its last stage in the box head",
        "take the FPN model of the same backbone",
    ),
    (
        r"backbone\.stem\.\d.*|backbone\.bottom_up\.stem\.conv[23]\..*",
        "a deep stem of three convolutions (R50-D, V1c, V1d) is not torchvision's",
        _PLAIN,
    ),
    (
        r".*\b(scales\.\d+\.scale|scales\.\d+|conv_centerness\..*|fcos_\w+\..*|ctrness\..*)",
        "FCOS and its kin learn a scale for each level here and have centre-ness on the class branch, which "
        "torchvision's has not",
        "take FCOS_ResNet50_FPN_Weights.COCO_V1 with detector@teacher=torchvision_fcos_r50, or a RetinaNet",
    ),
    (
        r"backbone\.(stages|patch_embed|downsample_layers)\b.*|.*\bpatch_embed\..*|.*\.(gamma|ls1)",
        "Swin and ConvNeXt backbones are not built here",
        _PLAIN,
    ),
    (r".*\.gn\d?\..*", "group normalisation is not in these networks here", _PLAIN),
    (
        r"bbox_head\.(shared_fcs|fc_cls)\..*",
        "mmdetection 1.x has background first and boxes that are a pixel larger",
        "take the model of mmdetection 2 or 3, or upgrade the file there (tools/model_converters)",
    ),
)
"""A pattern of whole names, the reason, and what to take instead; the first one that fits is told."""


def refuse_by_name(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a network by the first name that shows what it is.

    Args:
        tensors: under the names of the file.
        path: for messages.

    Raises:
        WeightsError: with the name, the reason, and what to take instead.
    """
    for pattern, reason, instead in _REASONS:
        if found := next((name for name in tensors if re.fullmatch(pattern, name)), None):
            raise refusal(path, found, reason, instead)
    for suffix in ("norm", "bn"):
        _refuse_group_norm(tensors, path, suffix)


def _refuse_group_norm(tensors: Mapping[str, Tensor], path: Path, suffix: str) -> None:
    """Norms of pyramid and heads have running statistics unless they normalise in groups of channels."""
    for name in tensors:
        beside = re.fullmatch(
            rf"((?:backbone\.fpn_|neck\.|roi_head|rpn_head|head\.).*{suffix})\.weight", name
        )
        if beside and f"{beside[1]}.running_var" not in tensors:
            raise refusal(path, name, "group normalisation is not in these networks here", _PLAIN)
        numbered = re.fullmatch(r"(head\.(?:cls|bbox)_subnet\.\d)\.weight", name)
        if numbered and tensors[name].dim() == 1 and f"{numbered[1]}.running_var" not in tensors:
            raise refusal(path, name, "group normalisation is not in these networks here", _PLAIN)


def refuse_by_record(content: Mapping[Any, Any], path: Path) -> None:
    """Refuse a file by what stands beside its tensors: Caffe2's, and versions of mmdetection before 2.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        WeightsError: with the key, the reason, and what to take instead.
    """
    caffe = _REASONS[0]
    if "blobs" in content:
        raise refusal(path, "blobs", *caffe[1:])
    if content.get("__author__") == "Caffe2" or content.get("matching_heuristics") is True:
        key = "matching_heuristics" if content.get("matching_heuristics") is True else "__author__"
        raise refusal(path, key, *caffe[1:])
    meta = content.get("meta")
    version = meta.get("mmdet_version") if isinstance(meta, Mapping) else None
    if isinstance(version, str) and re.match(r"[01]\.", version):
        raise refusal(path, f"meta mmdet_version {version}", *_REASONS[-1][1:])


def refuse_by_settings(text: str, path: Path) -> None:
    """Refuse settings that no tensor shows, by the text of mmdetection's configuration.

    Args:
        text: of the configuration; empty where the file has none.
        path: for messages.

    Raises:
        WeightsError: with the setting, the reason, and what to take instead.
    """
    if lateral := re.search(r"add_extra_convs\W{1,4}on_lateral", text):
        raise refusal(path, lateral[0], "P6 is made of the lateral of C5, and not of C5 or P5", _PLAIN)
    for found in re.finditer(r"target_stds\W{1,4}([\d., ]+)", text):
        stds = [float(number) for number in re.findall(r"\d*\.?\d+", found[1])]
        if stds not in ([1.0] * 4, [0.1, 0.1, 0.2, 0.2]):
            reason = "boxes are scaled otherwise than here, by 1 or by 0.1, 0.1, 0.2, 0.2"
            raise refusal(path, found[0].strip(), reason, "take a model with the usual box coder")


def refusal(path: Path, key: str, reason: str, instead: str) -> WeightsError:
    """Return the error that names file, tensor, reason and what to do."""
    named = quote(key, 120) if key.isprintable() else repr(key)
    return WeightsError(f"{path}: {named}: {reason}; {instead}")
