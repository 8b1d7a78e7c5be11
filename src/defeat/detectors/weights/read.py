"""One function reads every source of weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from defeat.detectors.weights.plain_pickle import first_line, load_plain
from defeat.detectors.weights.shipped import weight_path
from defeat.detectors.weights.tensors import check_tensors
from defeat.detectors.weights.torchvision_weights import read_enum
from defeat.detectors.weights.weight_file import WeightFile, unwrap
from defeat.errors import WeightsError
from defeat.io.safe_read import is_dir, is_file
from defeat.io.text import quote


def read_weights(source: str | Path, *, download: bool = False) -> WeightFile:
    """Read a .pth/.pt/.ckpt/.safetensors file, one that this package ships, or a torchvision weights enum.

    Nothing but tensors and plain containers is ever unpickled, from the cache of downloads neither. What
    comes back is fit to be copied into a detector: dense, finite, and backed by as many bytes as it claims.

    Args:
        source: a path, the name of a shipped file (``scenes_teacher``), or a name such as
            ``FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1``. See :func:`weight_path` for which comes first.
        download: allow a torchvision enum that is not in torch's cache to be fetched (checksum verified).

    Raises:
        WeightsError: no such file or enum, not a weight file, a pickle that holds code, numbers that are not
            finite, or a download that was not allowed or has another checksum than its name says.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise WeightsError(f"weights must be a path or a name, got {quote(source)}")
    path = weight_path(source)
    if is_dir(path):
        raise WeightsError(f"{path} is a folder: name a weight file in it (.ckpt, .pth or .safetensors)")
    if is_file(path):
        safe = path.suffix.lower() == ".safetensors"
        return _read_safetensors(path) if safe else unwrap(path, load_plain(path))
    return read_enum(str(source), download)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        tensors = load_file(path)
    except Exception as error:  # its own, and torch's about types and shapes
        raise WeightsError(f"{path} is not a readable safetensors file: {first_line(error)}") from error
    return WeightFile(check_tensors(path, tensors), None, None, source=str(path))
