"""Tensors of a file are looked at before a detector takes them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from defeat.errors import WeightsError
from defeat.io.text import quote

_LONGEST_NAME = 200
"""Characters in the name of a tensor; ours have up to 70."""


def check_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file if a detector can take them.

    Raises:
        WeightsError: a name that is none, a layout that is not dense, or numbers that are not finite.
    """
    size = path.stat().st_size
    for key, value in tensors.items():
        named = f"{path}: {quote(key)}"
        if not key.isprintable() or len(key) > _LONGEST_NAME:
            raise WeightsError(f"{named} is the name of no detector's tensor; the file is damaged")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            kind = f"{value.layout}, {value.dtype}, {value.device}"
            raise WeightsError(
                f"{named} is no plain tensor of real numbers ({kind}); save it dense and dequantised"
            )
        if value.numel() * value.element_size() > size:  # one number spread over any shape
            shape = "x".join(map(str, value.shape))
            raise WeightsError(f"{named} claims {shape} numbers, more than the file's {size} bytes hold")
        if value.is_floating_point() and not _is_usable(key, value):
            overflow = value.dtype == torch.float16 and not value.isnan().any()
            raise WeightsError(
                f"{named} holds numbers that are not finite: "
                + (
                    "they were too large for the float16 that the file is stored in; take it in float32"
                    if overflow
                    else "the training that wrote it went wrong; use an earlier checkpoint"
                )
            )
    return tensors


def _is_usable(key: str, value: Tensor) -> bool:
    """Finite; but a variance may be infinite, as half precision makes 65,520: that channel is silent."""
    if value.element_size() < 2:  # little is defined on 8-bit floats
        value = value.float()
    wrong = torch.isnan(value) if key.endswith("running_var") else ~torch.isfinite(value)
    return not wrong.any()
