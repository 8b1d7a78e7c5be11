"""One function reads every source of weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from defeat.detectors.weights.metadata import described
from defeat.detectors.weights.plain_pickle import first_line, load_plain
from defeat.detectors.weights.shipped import weight_path
from defeat.detectors.weights.torchvision_weights import published, read_enum
from defeat.detectors.weights.weight_file import WeightFile, unwrap
from defeat.errors import WeightsError
from defeat.io.safe_read import is_dir, is_file
from defeat.io.text import quote


def read_weights(source: str | Path, *, download: bool = False, ema: bool | None = None) -> WeightFile:
    """Read a .pth/.pt/.ckpt/.safetensors file, one that this package ships, or a torchvision weights enum.

    Nothing but tensors and plain containers is ever unpickled, from the cache of downloads neither. What
    comes back is fit to be copied into a detector: dense, finite, and backed by as many bytes as it claims.

    Args:
        source: a path, the name of a shipped file (``scenes_teacher``), or a name such as
            ``FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1``. See :func:`weight_path` for which comes first.
        download: allow a torchvision enum that is not in torch's cache to be fetched (checksum verified).
        ema: of a file with averaged weights beside raw ones, True takes the averaged ones and False the raw
            ones; None takes those that the program which wrote the file would, and a warning says which.

    Raises:
        WeightsError: no such file or enum, not a weight file, a pickle that holds code, numbers that are not
            finite, averaged weights that are not there, or a download that was not allowed or has another
            checksum than its name says.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise WeightsError(f"weights must be a path or a name, got {quote(source)}")
    if ema is not None and not isinstance(ema, bool):
        raise WeightsError(f"ema must be true, false or null, got {quote(ema)}")
    path = weight_path(source)
    if is_dir(path):
        raise WeightsError(f"{path} is a folder: name a weight file in it (.ckpt, .pth or .safetensors)")
    if is_file(path):
        if path.suffix.lower() == ".safetensors":
            file = described(unwrap(path, _read_safetensors(path), ema), path)
        else:
            file = unwrap(path, load_plain(path), ema)
        return published(file, path) if file.outputs is None else file
    return read_enum(str(source), download, ema)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # its own, and torch's about types and shapes
        raise WeightsError(f"{path} is not a readable safetensors file: {first_line(error)}") from error
