"""From the tensors of another framework to a detector that computes the same, in torchvision's terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from defeat.config import build_factory
from defeat.errors import WeightsError
from defeat.importer import heads
from defeat.importer.architecture import Architecture, recognise
from defeat.importer.classes import find_classes
from defeat.importer.imported import Imported, Row
from defeat.importer.names import (
    BODY,
    Renamed,
    detectron2_names,
    mmdetection_names,
    rename,
)
from defeat.importer.pixels import (
    STEM,
    Style,
    check_buffers,
    find_style,
    fold_stem,
    plain_text,
    statistics_warning,
)
from defeat.importer.refusals import refusal, refuse_by_settings
from defeat.importer.source import Source
from defeat.importer.torchvision_source import convert_torchvision
from defeat.io.text import few


def convert(source: Source, *, classes: str | None = None, style: str = "auto") -> Imported:
    """Convert a detector.

    Args:
        source: as :func:`~defeat.importer.source.read_source` opens it.
        classes: see :func:`~defeat.importer.classes.find_classes`.
        style: see :func:`~defeat.importer.pixels.find_style`.

    Raises:
        WeightsError: a name is left over or missing, or the network is none that is built here.
        ConfigError: ``classes`` is no file.
    """
    if source.kind == "torchvision":
        converted = convert_torchvision(source, classes)
    else:
        converted = _convert(source, classes, style)
    check_whole(converted, source)
    return converted


def _convert(source: Source, classes: str | None, style: str) -> Imported:
    text = plain_text(source.meta)
    refuse_by_settings(text, source.path)
    tables = {"mmdetection": mmdetection_names, "detectron2": detectron2_names}
    renamed = rename(source.tensors, tables[source.kind](source.tensors))
    _refuse_unknown(renamed, source)
    tensors = {new: source.tensors[old] for old, new in renamed.names.items()}
    network = recognise(tensors, source.path, background=False)
    names, origin = find_classes(classes, source.meta, network.classes, source.name)
    conventions = find_style(source.kind, network.backbone, source.path, text, style)
    check_buffers(source.buffers, conventions, source.path)
    rows = [
        Row("mapped", len(tensors), f"from {source.kind}'s names to torchvision's: {network}"),
        Row("mapped", None, f"{len(names)} class names, from {origin}"),
        *_with_statistics(tensors),
    ]
    tensors[STEM] = fold_stem(tensors[STEM], conventions)
    rows.append(Row("folded", 1, f"{conventions}, into the first convolution ({conventions.evidence})"))
    rows += _arrange_heads(tensors, network, source)
    model = _model(network, conventions, source, text)
    rows.append(
        Row("set", None, " ".join(f"{key}={_word(value)}" for key, value in model.items() if key[0] != "_"))
    )
    rows += [Row("not checked", None, line) for line in _unchecked(tensors, conventions, source, style)]
    return Imported(tensors, names, model, rows)


def _refuse_unknown(renamed: Renamed, source: Source) -> None:
    if renamed.unknown:
        reason = f"{source.kind} has no such part in a Faster R-CNN or RetinaNet that is built here"
        more = few(renamed.unknown[1:]) if len(renamed.unknown) > 1 else ""
        reason += f" (and {more})" if more else ""
        raise refusal(source.path, renamed.unknown[0], reason, "take a plain model of the zoo")


def _with_statistics(tensors: dict[str, Tensor]) -> list[Row]:
    """Give frozen norms of old files of detectron2 the statistics that are folded into their weights."""
    filled = 0
    for name in list(tensors):
        norm = re.fullmatch(rf"({re.escape(BODY)}.*(?:bn\d|downsample\.1))\.weight", name)
        if norm and f"{norm[1]}.running_var" not in tensors:
            tensors[f"{norm[1]}.running_mean"] = torch.zeros_like(tensors[name])
            tensors[f"{norm[1]}.running_var"] = torch.ones_like(tensors[name])
            filled += 2
    return [Row("set", filled, "statistics of frozen norms: mean 0, variance 1")] if filled else []


def _arrange_heads(tensors: dict[str, Tensor], network: Architecture, source: Source) -> list[Row]:
    """Permute rows of the heads, in place, and say which."""
    if network.family == "faster_rcnn":
        for part in ("weight", "bias"):
            scores, boxes = f"{heads.SCORES}{part}", f"{heads.BOXES}{part}"
            _check_there(tensors, (scores, boxes), source)
            tensors[scores] = heads.background_first(tensors[scores])
            tensors[boxes] = heads.with_background_box(tensors[boxes])
        return [
            Row("permuted", 4, "background from the last to the first row of the class scores; no box for it")
        ]
    rows = []
    parts = [f"{head}{part}" for head in (heads.LOGITS, heads.REGRESSION) for part in ("weight", "bias")]
    _check_there(tensors, parts, source)
    if source.kind == "detectron2":
        if network.anchors != 9:
            reason = f"{network.anchors} anchors in a cell, and not 3 sizes of 3 shapes"
            raise refusal(
                source.path, "head.bbox_pred.weight", reason, "take a model with RetinaNet's own anchors"
            )
        tensors.update({name: heads.ratio_major(tensors[name]) for name in parts})
        rows.append(Row("permuted", 4, "anchors from sizes first to shapes first"))
    for part in ("weight", "bias"):
        name = f"{heads.LOGITS}{part}"
        tensors[name] = heads.with_background_logit(tensors[name], network.anchors, bias=part == "bias")
    return [
        *rows,
        Row("permuted", 2, f"a silent background channel (bias {heads.SILENT:g}) before the classes"),
    ]


def _check_there(tensors: Mapping[str, Tensor], names: list[str] | tuple[str, ...], source: Source) -> None:
    for name in names:
        if name not in tensors:
            raise refusal(source.path, name, "this layer is not there", "give the whole detector")


def _model(network: Architecture, style: Style, source: Source, text: str) -> dict[str, Any]:
    """Name the builder and the settings by which it computes what the other framework does."""
    model: dict[str, Any] = {
        "_target_": f"defeat.detectors.{network.family}",
        "backbone": network.backbone,
        "fpn_channels": network.fpn_channels,
        "stride_in_1x1": style.stride_in_1x1,
        "norm": "frozen",
        "min_size": 800,
        "max_size": 1333,
        "anchors": "float",
        "strides": "fixed",
    }
    if network.family == "faster_rcnn":
        heads_version = "v2" if network.v2 else "v1"
        hidden = network.box_head_channels
        return {**model, "roi_align": "aligned", "heads": heads_version, "box_head_channels": hidden}
    relu = source.kind == "detectron2" or "relu_before_extra_convs=True" in text.replace(" ", "")
    return {**model, "extra_levels_from": network.extra_levels_from, "relu_before_p7": relu}


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unchecked(tensors: Mapping[str, Tensor], style: Style, source: Source, chosen: str) -> list[str]:
    """List what neither names nor shapes tell."""
    lines = []
    if chosen == "auto":
        other = "caffe" if style == style._replace(bgr=False) else "pytorch"
        lines.append(f"{style}: no tensor shows it; style={other} says otherwise, about 4 AP apart if wrong")
    if warning := statistics_warning(tensors, style):
        lines.append(warning)
    if source.kind == "detectron2":
        lines.append("anchors and FPN.FUSE_TYPE=sum are taken from the zoo: no tensor shows them")
    lines.append("the detector was not run in its own framework: defeat-eval must show its AP within 0.3")
    return lines


def check_whole(converted: Imported, source: Source) -> None:
    """Build the detector without memory for its tensors, and compare all names and shapes.

    Raises:
        WeightsError: a tensor is missing, left over, or has another shape.
    """
    node = OmegaConf.create({"model": {**converted.model, "_partial_": True}}).model
    with torch.device("meta"):
        built = build_factory(node)(num_classes=len(converted.classes) + 1)
    wanted = {k: v.shape for k, v in built.state_dict().items() if not k.endswith("num_batches_tracked")}
    there = {name: value.shape for name, value in converted.tensors.items()}
    missing = [name for name in wanted if name not in there]
    left = [name for name in there if name not in wanted]
    other = [
        f"{name} ({'x'.join(map(str, there[name]))}, not {'x'.join(map(str, wanted[name]))})"
        for name in wanted
        if name in there and there[name] != wanted[name]
    ]
    lists = (("missing", missing), ("left over", left), ("of another shape", other))
    if any(names for _, names in lists):
        told = "; ".join(f"{what}: {few(names)}" for what, names in lists if names)
        raise WeightsError(
            f"{source.name} is not whole, or not of {converted.model['backbone']}: {told} (in torchvision's "
            "names); give the whole state_dict of a plain model"
        )
