"""Losses of feature maps: DeFeat's inside and outside a mask, and PKD's and CWD's of whole maps.

They are pure functions, computed in float32 at least, whatever precision the maps come in.

The losses of PKD and CWD compare the maps as the networks saw them, the padding of the batch included, as
published. They count nothing over processes: DDP averages the losses of the processes. :func:`channel_loss`
is a mean over images, so that this average is the loss of the global batch if every process has as many
images. :func:`pearson_loss` takes mean and deviation from the images of its own process, as batch
normalisation and the authors' release do: with fewer images in each process it is another loss.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from defeat.distill.losses.decoupled import Decoupled, divide, widen
from defeat.distill.normalizers import local_normalizer


def decoupled_feature_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Decoupled:
    """Squared error inside and outside the mask, each over twice its number of elements: DeFeat, Eq. 4-5.

    Guo et al., CVPR 2021, arXiv 2103.14475: ``object = sum(M (S - T)^2) / max(1, 2 N_obj)``, and
    ``background`` likewise with ``1 - M``, where N counts elements, cells times channels, over the whole
    batch. With a mask of real values N is the mask's sum times the channels.

    Args:
        student: (B, C, H, W), adapted to the teacher's channels.
        teacher: (B, C, H, W).
        mask: (B, H, W) in [0, 1].

    Raises:
        ValueError: shapes do not agree.

    Example:
        >>> s, t = torch.zeros(1, 2, 1, 2), torch.tensor([[[[3.0, 6.0]], [[4.0, 8.0]]]])
        >>> loss = decoupled_feature_loss(s, t, torch.tensor([[[1.0, 0.0]]]))
        >>> loss.object.item(), loss.background.item()
        (6.25, 25.0)
    """
    sums, counts = decoupled_feature_sums(student, teacher, mask)
    return divide(sums, local_normalizer(counts))


def decoupled_feature_sums(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Decoupled, Tensor]:
    """Compute the two sums of :func:`decoupled_feature_loss`, and the counts that they are divided by there.

    The two are kept apart so that the counts of all levels can be added up over the processes at once.
    Arguments and errors are those of :func:`decoupled_feature_loss`.

    Returns:
        The sums of squared errors, and (2,) the counts 2 N_obj and 2 N_bg.
    """
    if student.shape != teacher.shape or student.shape[:1] + student.shape[2:] != mask.shape:
        raise ValueError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and mask "
            f"{tuple(mask.shape)} disagree"
        )
    # The teacher's map is widened on its way into the difference, where the device can, and not copied first.
    error = cast(Tensor, _SumOfSquares.apply(widen(student) - teacher))  # (B, C, H, W) -> (B, H, W)
    inside = mask.to(error.dtype)  # (B, H, W)
    outside = 1 - inside
    counts = 2 * student.shape[1] * torch.stack([inside.sum(), outside.sum()])  # (2,)
    return Decoupled((error * inside).sum(), (error * outside).sum()), counts


class _SumOfSquares(torch.autograd.Function):
    """Compute ``x.square().sum(1)`` in one pass over x.

    The backward makes one tensor of the size of x, where autograd would make three. Derivatives of any order
    exist, forward mode does not.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        # The one reduction that squares on its way; the root costs a rounding.
        return cast(Tensor, torch.linalg.vector_norm(x, dim=1)).square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # (B, C, H, W)
        return cast(Tensor, x * (2 * grad).unsqueeze(1))  # grad is (B, H, W)


def pearson_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the correlation of each channel with the teacher's, averaged: PKD.

    Cao et al., NeurIPS 2022, arXiv 2207.02039: every channel is brought to mean 0 and standard deviation 1
    over the batch and all positions, and half the mean squared error of the two is ``1 - r``, from 0 to 2,
    with Pearson's ``r``. (The authors' release has N - 1 in the deviation, which takes 1 / N off the loss.) A
    constant channel becomes 0 and costs 1/2 unless both are constant.

    Args:
        student: (B, C, H, W), adapted to the teacher's channels.
        teacher: (B, C, H, W).

    Raises:
        ValueError: shapes do not agree.

    Example:
        >>> t = torch.tensor([[[[1.0, 2.0, 3.0, 6.0]]]])
        >>> round(pearson_loss(5 * t + 7, t).item(), 6), round(pearson_loss(-t, t).item(), 6)
        (0.0, 2.0)
    """
    _check_shapes(student, teacher)
    return (_standardise(student) - _standardise(teacher)).square().mean() / 2


def _standardise(x: Tensor) -> Tensor:
    """Bring every channel of (B, C, H, W) to mean 0 and standard deviation 1 over batch and positions."""
    x = widen(x)
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)  # (1, C, 1, 1) each
    # Below this the deviation is rounding, and dividing by it would make a loss of noise.
    floor = 1e-6 * (1 + mean.detach().abs())
    return (x - mean) / variance.clamp(min=floor.square()).sqrt()


def channel_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL divergence of where each channel is active, averaged over channels and images: CWD.

    Shu et al., ICCV 2021, arXiv 2011.13256: ``T^2 / (B C) sum_bc sum_i q_bci (log q_bci - log p_bci)`` with
    the softmax over the positions of one channel of one image, ``q = softmax_i(teacher / T)`` and
    ``p = softmax_i(student / T)``.

    Args:
        student: (B, C, H, W), adapted to the teacher's channels.
        teacher: (B, C, H, W).
        temperature: T.

    Raises:
        ValueError: shapes do not agree, or the temperature is not positive.

    Example:
        >>> t = torch.tensor([[[[0.0, 0.0, 2.0]]]])
        >>> channel_loss(t + 7, t, temperature=1.0).item()
        0.0
    """
    _check_shapes(student, teacher)
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    log_p = F.log_softmax(widen(student).flatten(2) / temperature, dim=2)  # (B, C, H W)
    log_q = F.log_softmax(widen(teacher).flatten(2) / temperature, dim=2)
    divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True)  # (B, C, H W)
    return temperature**2 * divergence.sum(2).mean()


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} disagree")
