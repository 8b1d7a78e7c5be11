"""The names that mmdetection and detectron2 give to what torchvision has too, and torchvision's names of it.

Each table maps a pattern of whole names to its replacement, after the sources of mmdetection 2 and 3
(``resnet.py``, ``fpn.py``, ``rpn_head.py``, ``convfc_bbox_head.py``, ``retina_head.py``) and detectron2
(``resnet.py``, ``fpn.py``, ``rpn.py``, ``box_head.py``, ``fast_rcnn.py``, ``retinanet.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

Rename = tuple[str, str | Callable[[re.Match[str]], str]]

BODY, PYRAMID = "backbone.body.", "backbone.fpn."

_MMDETECTION_BACKBONE: tuple[Rename, ...] = (
    (r"backbone\.((conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.\w+)", rf"{BODY}\1"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", rf"{PYRAMID}inner_blocks.\1.0.\2"),
    (r"neck\.lateral_convs\.(\d)\.bn\.(\w+)", rf"{PYRAMID}inner_blocks.\1.1.\2"),
)

_MMDETECTION_HEADS: tuple[Rename, ...] = (
    (r"rpn_head\.rpn_conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"rpn_head\.rpn_conv\.(\d)\.conv\.(\w+)", r"rpn.head.conv.\1.0.\2"),
    (r"rpn_head\.rpn_cls\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"rpn_head\.rpn_reg\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"roi_head\.bbox_head\.shared_convs\.([0-3])\.conv\.(\w+)", r"roi_heads.box_head.\1.0.\2"),
    (r"roi_head\.bbox_head\.shared_convs\.([0-3])\.bn\.(\w+)", r"roi_heads.box_head.\1.1.\2"),
    (r"roi_head\.bbox_head\.fc_cls\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"roi_head\.bbox_head\.fc_reg\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
    (r"bbox_head\.cls_convs\.([0-3])\.conv\.(\w+)", r"head.classification_head.conv.\1.0.\2"),
    (r"bbox_head\.reg_convs\.([0-3])\.conv\.(\w+)", r"head.regression_head.conv.\1.0.\2"),
    (r"bbox_head\.retina_cls\.(\w+)", r"head.classification_head.cls_logits.\1"),
    (r"bbox_head\.retina_reg\.(\w+)", r"head.regression_head.bbox_reg.\1"),
)

_STAGE = r"backbone\.bottom_up\.res([2-5])\.(\d+)\."

_DETECTRON2_BACKBONE: tuple[Rename, ...] = (
    (r"backbone\.bottom_up\.stem\.conv1\.weight", rf"{BODY}conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", rf"{BODY}bn1.\1"),
    (_STAGE + r"conv([123])\.weight", lambda m: f"{BODY}layer{int(m[1]) - 1}.{m[2]}.conv{m[3]}.weight"),
    (_STAGE + r"conv([123])\.norm\.(\w+)", lambda m: f"{BODY}layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}.{m[4]}"),
    (_STAGE + r"shortcut\.weight", lambda m: f"{BODY}layer{int(m[1]) - 1}.{m[2]}.downsample.0.weight"),
    (
        _STAGE + r"shortcut\.norm\.(\w+)",
        lambda m: f"{BODY}layer{int(m[1]) - 1}.{m[2]}.downsample.1.{m[3]}",
    ),
    (r"backbone\.top_block\.(p[67])\.(\w+)", rf"{PYRAMID}extra_blocks.\1.\2"),
)

_DETECTRON2_HEADS: tuple[Rename, ...] = (
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(\w+)", r"rpn.head.conv.\1.0.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"roi_heads\.box_head\.conv([1-4])\.weight", lambda m: f"roi_heads.box_head.{int(m[1]) - 1}.0.weight"),
    (
        r"roi_heads\.box_head\.conv([1-4])\.norm\.(\w+)",
        lambda m: f"roi_heads.box_head.{int(m[1]) - 1}.1.{m[2]}",
    ),
    (r"roi_heads\.box_predictor\.((cls_score|bbox_pred)\.\w+)", r"roi_heads.box_predictor.\1"),
    (r"head\.cls_subnet\.([0246])\.(\w+)", lambda m: _subnet("classification", m)),
    (r"head\.bbox_subnet\.([0246])\.(\w+)", lambda m: _subnet("regression", m)),
    (r"head\.cls_score\.(\w+)", r"head.classification_head.cls_logits.\1"),
    (r"head\.bbox_pred\.(\w+)", r"head.regression_head.bbox_reg.\1"),
)


def _subnet(branch: str, match: re.Match[str]) -> str:
    """Count convolutions alone; detectron2 counts the ReLU behind each of them too."""
    return f"head.{branch}_head.conv.{int(match[1]) // 2}.0.{match[2]}"


class Renamed(NamedTuple):
    """Names of a file, and what they are called in torchvision."""

    names: dict[str, str]
    """Name there to name here."""
    unknown: list[str]
    """Names that no pattern of the table has."""


def rename(names: Iterable[str], table: Sequence[Rename]) -> Renamed:
    """Translate whole names; each name by the first pattern that has it."""
    patterns = [(re.compile(pattern), replacement) for pattern, replacement in table]
    known, unknown = {}, []
    for name in names:
        found = next(((m, to) for pattern, to in patterns if (m := pattern.fullmatch(name))), None)
        if found is None:
            unknown.append(name)
        else:
            match, to = found
            known[name] = match.expand(to) if isinstance(to, str) else to(match)
    return Renamed(known, unknown)


def mmdetection_names(names: Mapping[str, object]) -> tuple[Rename, ...]:
    """Return the table for a file of mmdetection, whose ``neck.fpn_convs`` holds P6 and P7 too."""
    laterals = sum(bool(re.fullmatch(r"neck\.lateral_convs\.\d\.conv\.weight", name)) for name in names)
    first = 1 if any(".shared_convs." in name for name in names) else 0  # 4conv1fc has one layer of the two

    def output(match: re.Match[str]) -> str:
        level, part, last = int(match[1]), match[2], match[3]
        if level < laterals:
            return f"{PYRAMID}layer_blocks.{level}.{0 if part == 'conv' else 1}.{last}"
        return f"{PYRAMID}extra_blocks.p{level - laterals + 6}.{last}"

    def layer(match: re.Match[str]) -> str:
        return f"roi_heads.box_head.{'5' if first else f'fc{int(match[1]) + 6}'}.{match[2]}"

    return (
        *_MMDETECTION_BACKBONE,
        (r"neck\.fpn_convs\.(\d)\.(conv|bn)\.(\w+)", output),
        (r"roi_head\.bbox_head\.shared_fcs\.([01])\.(\w+)", layer),
        *_MMDETECTION_HEADS,
    )


def detectron2_names(names: Mapping[str, object]) -> tuple[Rename, ...]:
    """Return the table for a file of detectron2, which numbers levels by the exponent of their stride."""
    found = [re.fullmatch(r"backbone\.fpn_lateral(\d)\.weight", name) for name in names]
    finest = min((int(match[1]) for match in found if match), default=2)
    convolutional = any(name.startswith("roi_heads.box_head.conv1.") for name in names)

    def level(block: str) -> Callable[[re.Match[str]], str]:
        def to(match: re.Match[str]) -> str:
            part = 1 if match[2] else 0
            return f"{PYRAMID}{block}.{int(match[1]) - finest}.{part}.{match[3]}"

        return to

    def layer(match: re.Match[str]) -> str:
        return f"roi_heads.box_head.{'5' if convolutional else f'fc{int(match[1]) + 5}'}.{match[2]}"

    return (
        *_DETECTRON2_BACKBONE,
        (r"backbone\.fpn_lateral(\d)\.(norm\.)?(\w+)", level("inner_blocks")),
        (r"backbone\.fpn_output(\d)\.(norm\.)?(\w+)", level("layer_blocks")),
        (r"roi_heads\.box_head\.fc([12])\.(\w+)", layer),
        *_DETECTRON2_HEADS,
    )
