"""The backbone of a frozen detector, compiled for the shapes of image batch that it meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from defeat.errors import ConfigError

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]

COMPILE_MODES: tuple[CompileMode, ...] = get_args(CompileMode)
"""Modes of :func:`torch.compile`; the last two replay CUDA graphs on a GPU."""

Maps = dict[str, Tensor]


def compile_backbone(
    detector: nn.Module, mode: CompileMode, *, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile body and pyramid of a frozen detector, in place, each at its first call with a shape of batch.

    Hooks on the two and on the backbone stay outside of what is compiled, so that they may come and go at
    every step. Of more shapes than ``torch._dynamo.config.recompile_limit``, which is 8, torch warns, and
    computes the further ones as if nothing had been compiled: see ``size_divisible`` of
    :func:`~defeat.detectors.builders.faster_rcnn` for batches of few shapes. What this process has compiled
    before, which would count too, is forgotten: it is compiled again if it is called again.

    Args:
        detector: frozen and in eval mode, with its final modules and weights, called without gradients.
        mode: of :func:`torch.compile`.
        backend: of :func:`torch.compile`; only ``inductor`` knows modes.

    Raises:
        ConfigError: the backbone does not consist of a body and a pyramid, as torchvision's do.
    """
    backbone = getattr(detector, "backbone", None)
    parts = [getattr(backbone, name, None) for name in ("body", "fpn")]
    if not all(isinstance(part, nn.Module) for part in parts):
        raise ConfigError(
            f"compile={mode} is for a backbone with a pyramid, and that of {type(detector).__name__} has "
            "none: set compile=null"
        )
    torch.compiler.reset()  # torch counts by the function, which all detectors of the process share
    for part in parts:
        cast(Any, part).forward = _compiled(cast(nn.Module, part), mode, backend)


def _compiled(
    module: nn.Module, mode: CompileMode, backend: str | Callable[..., Any]
) -> Callable[[Any], Maps]:
    # The bound method rather than the module: hooks are called around it. A graph for each shape: kernels for
    # a known shape are faster, and a CUDA graph has but one.
    run = torch.compile(module.forward, mode=mode, backend=backend, dynamic=False)
    if mode == "default":
        return cast(Callable[[Any], Maps], run)

    def replay(x: Any) -> Maps:
        # A CUDA graph writes its next results to where these lie, and those of the step before may be needed.
        torch.compiler.cudagraph_mark_step_begin()
        return {name: value.clone() for name, value in run(x).items()}

    return replay
