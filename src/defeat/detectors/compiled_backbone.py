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


class CompiledModule(nn.Module):
    """A module whose forward is compiled at its first call with each shape; hooks are called around it.

    Args:
        module: returns maps by name; it is called without gradients.
        mode: of :func:`torch.compile`.
        backend: of :func:`torch.compile`.
    """

    def __init__(self, module: nn.Module, mode: CompileMode, backend: str | Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self._replays = mode != "default"
        # A graph for each shape: kernels for a known shape are faster, and a CUDA graph has but one.
        self._run = torch.compile(module.forward, mode=mode, backend=backend, dynamic=False)

    def forward(self, x: Any) -> Maps:
        """Compute the module's maps, each in memory of its own."""
        if not self._replays:
            return cast(Maps, self._run(x))
        # A CUDA graph writes its next results to where these lie, and those of the step before may be needed.
        torch.compiler.cudagraph_mark_step_begin()
        return {name: value.clone() for name, value in self._run(x).items()}


def compile_backbone(
    detector: nn.Module, mode: CompileMode, *, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Put body and pyramid of a frozen detector into a :class:`CompiledModule` each, in place.

    Of more shapes than ``torch._dynamo.config.recompile_limit``, which is 8, torch warns, and computes the
    further ones as if nothing had been compiled: see ``size_divisible`` of
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
    parts = {name: getattr(backbone, name, None) for name in ("body", "fpn")}
    if not all(isinstance(part, nn.Module) for part in parts.values()):
        raise ConfigError(
            f"compile={mode} is for a backbone with a pyramid, and that of {type(detector).__name__} has "
            "none: set compile=null"
        )
    torch.compiler.reset()  # torch counts by the function, which all detectors of the process share
    for name, part in parts.items():
        setattr(backbone, name, CompiledModule(cast(nn.Module, part), mode, backend))
