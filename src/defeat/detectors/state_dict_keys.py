"""Tensors that another program saved are renamed and turned into numbers for the model that takes them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from torch import Tensor, nn

from defeat.errors import WeightsError
from defeat.io.text import quote

log = logging.getLogger(__name__)

OLD_NAMES = (
    (re.compile(r"(.*\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
    *((re.compile(rf"(head\.\w+_head\.conv)\.{2 * i}\.(weight|bias)"), rf"\1.{i}.0.\2") for i in range(4)),
)
"""How torchvision called parameters before 0.13, and what it calls them now. Its first COCO weights still
have the old names; its modules translate them in their own ``_load_from_state_dict``."""

WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Names of modules that torch puts around others, anywhere in a model."""


def adapt_to_model(tensors: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Rename tensors as the model calls them, and turn quantised ones into numbers.

    Args:
        tensors: of a file.
        model: the module that is to take them.
        source: what messages call the file.

    Raises:
        WeightsError: integers without their scales where the model has real numbers.
    """
    own = model.state_dict()
    return _dequantized(_renamed(_without_prefix(tensors, own, source), own), own, source)


def _without_prefix(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Take off what all names begin with, such as ``module.`` of DDP, where the model lacks it."""
    tensors = {name if name in own else WRAPPERS.sub("", name): value for name, value in tensors.items()}
    first = next(iter(tensors), "")
    prefixes = ["", *(first[: dot.end()] for dot in re.finditer(r"\.", first))]
    shared = [prefix for prefix in prefixes if all(name.startswith(prefix) for name in tensors)]
    best = max(shared, key=lambda prefix: sum(name[len(prefix) :] in own for name in tensors))
    if best:
        log.info("%s: all its names begin with %s, which is taken off", source, quote(best))
    return {name[len(best) :]: value for name, value in tensors.items()}


def _renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate :data:`OLD_NAMES` where the model has the new name and not the old one."""
    renamed = {}
    for key, value in tensors.items():
        new = next((p.sub(to, key) for p, to in OLD_NAMES if p.fullmatch(key)), key)
        renamed[new if key not in own and new in own else key] = value
    return renamed


def _dequantized(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Multiply tensors by ``<name>_scale``, less ``<name>_zero_point``, where the file has them."""
    result = dict(tensors)
    for name, value in tensors.items():
        if name not in own or not own[name].is_floating_point():
            continue
        scale, zero = (result.pop(f"{name}_{part}", None) for part in ("scale", "zero_point"))
        if scale is not None:
            if not {scale.numel(), 1 if zero is None else zero.numel()} <= {1, *value.shape[:1]}:
                raise WeightsError(f"{source}: {quote(name)} has neither one scale nor one for each output")
            value = value.float() if zero is None else value.float() - _by_output(zero, value)
            result[name] = value * _by_output(scale, value)
        elif not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise WeightsError(
                f"{source}: {quote(name)} holds {kind} numbers, which mean nothing without their scales "
                f"({name}_scale): save the weights dequantised"
            )
    return result


def _by_output(factor: Tensor, value: Tensor) -> Tensor:
    """Shape one number, or one for each output, so that it multiplies (outputs, ...)."""
    return factor.float().reshape(-1, *[1] * (value.dim() - 1)) if value.dim() else factor.float().squeeze()
