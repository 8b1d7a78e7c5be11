"""Imitation of whole feature maps, without a mask: the term, and the losses of PKD and CWD.

Maps are compared as the networks saw them, the padding of the batch included, as published.

Nothing is counted over processes here, whose losses DDP averages. :func:`channel_loss` is a mean over images,
so that this gives the loss of the global batch where every process has as many images. :func:`pearson_loss`
takes mean and deviation from the images of its process alone, as batch normalisation and the authors' release
do: with fewer images in each process it is another loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defeat.detectors.capture import DetectorSpec
from defeat.distill.adapters import matching
from defeat.distill.losses import widen
from defeat.distill.terms import AdaptedMaps, DistillBatch, LossDict, Maps
from defeat.errors import ConfigError

MapLoss = Callable[[Tensor, Tensor], Tensor]
"""Adapted student map and teacher map of a level, (B, C, H, W) each, to a scalar."""


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
    log_p = F.log_softmax(widen(student).flatten(2) / temperature, dim=2)
    log_q = F.log_softmax(widen(teacher).flatten(2) / temperature, dim=2)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(2).mean()


class WholeMapTerm(nn.Module):
    """Imitation of every cell alike by any loss of two maps, averaged over the levels both detectors have.

    Args:
        student: what the student offers.
        teacher: what the teacher offers.
        maps: ``neck`` for the pyramid, ``stages`` for the backbone.
        weight: of the mean over levels.
        loss: compares the maps of one level.
        adapter: builds the layer from student to teacher channels of one level.
        strides: use only these levels; None means all that both have.

    Raises:
        ConfigError: see :class:`AdaptedMaps`; a weight that is not positive.
    """

    def __init__(
        self,
        student: DetectorSpec,
        teacher: DetectorSpec,
        *,
        maps: Maps = "neck",
        weight: float,
        loss: MapLoss,
        adapter: Callable[[int, int], nn.Module] = matching,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if weight <= 0:
            raise ConfigError(f"weight={weight} must be positive: leave the term out instead")
        self.maps: Maps = maps
        self.weight = weight
        self.loss = loss
        self.adapters = AdaptedMaps(student, teacher, maps, adapter, strides)

    def forward(self, batch: DistillBatch) -> LossDict:
        """Weighted loss of one batch, (L,)."""
        losses = [self.loss(ours, theirs) for ours, theirs in self.adapters(batch)]
        return {"": self.weight * torch.stack(losses) / len(losses)}


def _standardise(x: Tensor) -> Tensor:
    """Every channel to mean 0 and standard deviation 1 over batch and positions."""
    x = widen(x)
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
    # Below this the deviation is rounding, and dividing by it would make a loss of noise.
    floor = 1e-6 * (1 + mean.detach().abs())
    return (x - mean) / variance.clamp(min=floor.square()).sqrt()


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} disagree")
