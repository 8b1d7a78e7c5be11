"""A file of another framework: opened, its tensors under their own names, its framework told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from defeat.detectors.weights import (
    WeightFile,
    load_plain,
    published,
    read_weights,
    sha256,
    unwrap,
    weight_path,
)
from defeat.detectors.weights.averaged import AVERAGED, RAW
from defeat.errors import WeightsError
from defeat.importer.refusals import refuse_by_name, refuse_by_record
from defeat.io.safe_read import is_file
from defeat.io.text import few

_PREFIX = re.compile(r"(?:.*?\.)??(?=backbone\.)")
"""What stands before the names of a detector's parts; each has a backbone."""

_DROPPED_SILENTLY = (
    r".*\.num_batches_tracked",
    r"pixel_(mean|std)",
    r"(proposal_generator\.)?anchor_generator\.cell_anchors\..*",
    r"data_preprocessor\..*",
)

_DROPPED: Mapping[str, str] = {
    r"roi_heads?\.mask_.*": "the mask branch",
    r"roi_heads?\.keypoint_.*": "the keypoint branch",
    r"sem_seg_head\..*": "the branch of semantic segmentation",
}
"""Branches that a detector of boxes does not have."""

_ZOO_NAME = re.compile(r"_\d{8}(?:_\d{6})?-([0-9a-f]{8})\.pth")
"""The end of a name in mmdetection's model zoo: a date, and the start of the file's SHA-256."""


class Source(NamedTuple):
    """The content of a file."""

    name: str
    """The source in messages."""
    path: Path
    kind: str
    """``mmdetection``, ``detectron2`` or ``torchvision``."""
    tensors: dict[str, Tensor]
    """Under the framework's names, without prefix; what every import leaves out is gone."""
    buffers: dict[str, Tensor]
    """``pixel_mean`` and ``pixel_std`` of old files of detectron2."""
    meta: Any
    """The record that mmdetection stores beside the weights."""
    file: WeightFile
    digest: str | None
    """SHA-256 of the file; None for a torchvision enum."""
    prefix: str
    """What every name began with."""
    keys: tuple[str, ...]
    """Other entries of the file, which are not read."""
    dropped: dict[str, int]
    """Branches that were left out, and the number of their tensors."""


def read_source(
    source: str, kind: str = "auto", *, ema: bool | None = None, download: bool = False
) -> Source:
    """Open a file safely, refuse what cannot be imported, and tell its framework.

    Args:
        source: a file of tensors, or a torchvision weights enum.
        kind: of :data:`defeat.importer.keys.KINDS`; ``auto`` goes by the names.
        ema: see :func:`~defeat.detectors.weights.read_weights`.
        download: see there.

    Raises:
        WeightsError: the file cannot be read, holds code, or is of a network that is not built here.
    """
    path = weight_path(source)
    if not is_file(path) or path.suffix.lower() == ".safetensors":
        content: Any = {}
        file = read_weights(source, download=download, ema=ema)
    else:
        content = load_plain(path)
        if isinstance(content, Mapping):
            refuse_by_record(content, path)
        file = published(unwrap(path, content, ema), path)
    digest = sha256(path) if is_file(path) else None
    _check_digest(path, digest)
    if file.config is not None:
        raise WeightsError(
            f"{source} is of this project already: give it to detector@teacher=... teacher.weights={source}"
        )
    prefix, tensors = _without_prefix(file.tensors, source)
    buffers = {name: x for name, x in tensors.items() if name in ("pixel_mean", "pixel_std")}
    tensors, dropped = _without_branches(tensors)
    refuse_by_name(tensors, path)
    return Source(
        source,
        path,
        _kind(tensors, kind, source),
        tensors,
        buffers,
        content.get("meta"),
        file._replace(tensors={}),
        digest,
        prefix,
        _unread(content, file),
        dropped,
    )


def _check_digest(path: Path, digest: str | None) -> None:
    """Compare a file of mmdetection's model zoo with the checksum in its name."""
    named = _ZOO_NAME.search(path.name)
    if named and digest and not digest.startswith(named[1]):
        raise WeightsError(
            f"{path}: its SHA-256 begins with {digest[:8]}, and its name says {named[1]}: fetch it again"
        )


def _unread(content: Mapping[Any, Any], file: WeightFile) -> tuple[str, ...]:
    """Entries of a checkpoint beside its tensors."""
    if set(content) >= set(file.tensors):
        return ()
    return tuple(str(key) for key in content if key not in (*RAW, *AVERAGED, "meta"))


def _without_prefix(tensors: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, Tensor]]:
    """Take off what wrappers put before all names: ``module.``, ``model.``, ``_orig_mod.`` and others."""
    plain = {re.sub(r"\b_orig_mod\.", "", name): value for name, value in tensors.items()}
    first = next((m[0] for name in plain if (m := _PREFIX.match(name))), None)
    if first is None:
        refuse_by_name(tensors, Path(source))
        raise WeightsError(
            f"{source} holds no detector: none of its names begins with backbone, such as "
            f"{few(list(plain))}; for a classifier's weights choose backbone_weights of a detector"
        )
    wrapped = "_orig_mod." if len(plain.keys() & tensors.keys()) < len(tensors) else ""
    others = [name for name in plain if not name.startswith(first)]
    if others:
        raise WeightsError(
            f"{source}: {few(others)} stand beside the detector, whose names begin with {first!r}: save the "
            "detector's state_dict alone"
        )
    return first + wrapped, {name.removeprefix(first): value for name, value in plain.items()}


def _without_branches(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    kept: dict[str, Tensor] = {}
    dropped: dict[str, int] = {}
    for name, value in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in _DROPPED_SILENTLY):
            continue
        branch = next((what for pattern, what in _DROPPED.items() if re.fullmatch(pattern, name)), None)
        if branch is None:
            kept[name] = value
        else:
            dropped[branch] = dropped.get(branch, 0) + 1
    return kept, dropped


def _kind(names: Iterable[str], chosen: str, source: str) -> str:
    names = list(names)
    marks = {
        "detectron2": any(name.startswith("backbone.bottom_up.") for name in names),
        "mmdetection": any(
            name.startswith(("neck.", "bbox_head.", "roi_head.", "rpn_head.")) for name in names
        ),
        "torchvision": any(name.startswith("backbone.body.") for name in names),
    }
    kind = next((kind for kind, fits in marks.items() if fits), None)
    if kind is None:
        raise WeightsError(
            f"{source}: {few(names)} are the names of neither mmdetection, detectron2 nor torchvision with a "
            "feature pyramid; C4 and DC5 networks have none: take an FPN model"
        )
    if chosen not in ("auto", kind):
        raise WeightsError(f"{source} has the names of {kind}: leave out kind={chosen}")
    return kind
