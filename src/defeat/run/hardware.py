"""Settings that make the same training faster on some hardware, and change its numbers by rounding alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from defeat.errors import ConfigError
from defeat.training.module import OptimizerFactory


def check_hardware(config: DictConfig) -> None:
    """Refuse switches that make no sense, before anything is computed.

    Args:
        config: composed from conf/train.yaml.

    Raises:
        ConfigError: a switch is neither true nor false; a student is to be compiled; or gradients of a fused
            optimiser are to be clipped in mixed precision.
    """
    for name in ("tf32", "channels_last", "keep_freed_memory"):
        if not isinstance(config[name], bool):
            raise ConfigError(f"{name} must be true or false, got {config[name]!r}")
    if config.student.get("compile") is not None:
        raise ConfigError(
            f"student.compile={config.student.compile} is for teachers alone, which are frozen: leave it null"
        )
    _check_fused(config)


def _check_fused(config: DictConfig) -> None:
    """Lightning refuses it too, but in the first step and without a word on which keys to change."""
    trainer = config.trainer
    if (
        config.optim.optimizer.get("fused")
        and trainer.gradient_clip_val
        and str(trainer.precision) in ("16-mixed", "bf16-mixed")
    ):
        raise ConfigError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} cannot clip the gradients of "
            f"optim.optimizer.fused=true with trainer.precision={trainer.precision}, which Lightning leaves "
            "to the optimizer: set optim.optimizer.fused=false"
        )


def set_hardware(config: DictConfig) -> None:
    """Set TF32 for the whole process.

    For CUDA alone: ``torch.set_float32_matmul_precision`` would change what some CPUs compute as well.
    """
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors on the CPU free, for the next ones, until the process ends.

    glibc fetches large pieces from the system one by one and hands them back when they are freed. So each
    step, and each image that is decoded, gets memory anew that the system clears page by page, which takes
    longer than many operations on it. torch has an allocator that keeps memory for a GPU, but none for a
    CPU. Processes that are forked later do so too.

    Returns:
        Whether this C library can be told so; others than glibc stay as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; on Windows there is no such library at all
        return False
    # Of malloc.h. In this order: keep what is freed, take it from one heap, and enlarge that in large steps.
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    return bool(mallopt(trim_threshold, -1) and mallopt(mmap_max, 0) and mallopt(top_pad, 64 * 2**20))


def lay_channels_last(*modules: nn.Module | None) -> None:
    """Lay the weights of convolutions out by channel, which their outputs then follow; values stay.

    The optimiser's state follows too where it is made after this, see :func:`laid_like_parameters` for one
    that is loaded.
    """
    for module in modules:
        if module is not None:
            module.to(memory_format=torch.channels_last)


def laid_like_parameters(factory: OptimizerFactory) -> OptimizerFactory:
    """Let an optimiser's state, when it is loaded, take the strides of the parameters.

    A checkpoint keeps strides. Fused optimisers walk through parameter and state as if both had the same; on
    the state of a run of the other ``channels_last`` they would take wrong steps without a word.
    """

    def build(parameters: Iterable[Any]) -> Optimizer:
        optimizer = factory(parameters)
        optimizer.register_load_state_dict_post_hook(_lay_like_parameters)
        return optimizer

    return build


def _lay_like_parameters(optimizer: Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
