"""DeFeat's loss arithmetic: tensors in, scalars out (Guo et al., CVPR 2021, arXiv 2103.14475).

Everything is computed in float32 at least, whatever precision the features come in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from defeat.distill.normalizers import Normalizer, local_normalizer


class Decoupled(NamedTuple):
    """The two halves of a decoupled loss, unweighted scalars."""

    object: Tensor
    background: Tensor


def widen(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def decoupled_feature_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Decoupled:
    """Squared error inside and outside the mask, each over twice its number of elements (Eq. 4-5).

    ``object = sum(M (S - T)^2) / max(1, 2 N_obj)`` and ``background`` likewise with ``1 - M``, where N counts
    elements, cells times channels, over the whole batch. With a mask of real values N is the mask's sum
    times the channels.

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
    return _divide(sums, local_normalizer(counts))


def decoupled_feature_sums(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Decoupled, Tensor]:
    """The two sums of :func:`decoupled_feature_loss`, and what each is divided by there.

    Apart, so that the counts of all levels can be taken over the processes at once. Arguments and errors as
    there.

    Returns:
        The sums of squared errors, and (2,) the counts 2 N_obj and 2 N_bg.
    """
    if student.shape != teacher.shape or student.shape[:1] + student.shape[2:] != mask.shape:
        raise ValueError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and mask "
            f"{tuple(mask.shape)} disagree"
        )
    # The teacher's map is widened on its way into the difference, where the device can, and not copied first.
    error = cast(Tensor, _SumOfSquares.apply(widen(student) - teacher))
    inside = mask.to(error.dtype)
    outside = 1 - inside
    counts = 2 * student.shape[1] * torch.stack([inside.sum(), outside.sum()])
    return Decoupled((error * inside).sum(), (error * outside).sum()), counts


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    is_object: Tensor,
    *,
    object_temperature: float = 1.0,
    background_temperature: float = 1.0,
    pooled: bool = False,
    normalizer: Normalizer = local_normalizer,
) -> Decoupled:
    """KL divergence of class scores, averaged over object and over background proposals (Eq. 6-9).

    ``T^2 sum_c q_c (log q_c - log p_c)`` with ``q = softmax(teacher / T)``, ``p = softmax(student / T)`` and
    a temperature for each half. A half without proposals is 0.

    Args:
        student: (N, K + 1) logits.
        teacher: (N, K + 1) logits of the same proposals and the same classes.
        is_object: (N,) bool, True where the proposal is matched to an object.
        pooled: divide both halves by N instead of by their own number: with one temperature they add up to
            the mean over all proposals, distillation without decoupling.
        normalizer: turns the two counts into divisors of the sums, see :mod:`defeat.distill.normalizers`.

    Raises:
        ValueError: shapes do not agree.

    Example:
        >>> t = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> loss = decoupled_kl(t, t, torch.tensor([True, False]))
        >>> loss.object.item(), loss.background.item()
        (0.0, 0.0)
    """
    if student.shape != teacher.shape or student.shape[:1] != is_object.shape:
        raise ValueError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and is_object "
            f"{tuple(is_object.shape)} disagree"
        )
    is_background = ~is_object
    sums = _halves(
        _kl, student, teacher, (object_temperature, background_temperature), (is_object, is_background)
    )
    counts = torch.stack([is_object.sum(), is_background.sum()])
    return _divide(sums, normalizer(counts.sum().expand(2) if pooled else counts))


def decoupled_binary_kl(
    student: Tensor,
    teacher: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    object_temperature: float = 1.0,
    background_temperature: float = 1.0,
    normalizer: Normalizer = local_normalizer,
) -> Decoupled:
    """KL divergence of independent class scores, averaged over positive and over negative anchors.

    Eq. 6-9 carried over to sigmoid classification, an extension of the paper: per anchor
    ``T^2 sum_c [q_c log(q_c / p_c) + (1 - q_c) log((1 - q_c) / (1 - p_c))]`` with
    ``q = sigmoid(teacher / T)`` and ``p = sigmoid(student / T)``. A half without anchors is 0.

    Args:
        student: (N, K) logits.
        teacher: (N, K) logits of the same anchors and the same classes.
        positive: (N,) bool.
        negative: (N,) bool; anchors in neither set do not count.
        normalizer: as for :func:`decoupled_kl`.

    Raises:
        ValueError: shapes do not agree.

    Example:
        >>> t, yes = torch.tensor([[2.0, -1.0]]), torch.tensor([True])
        >>> decoupled_binary_kl(t, t, yes, ~yes).object.item()
        0.0
    """
    if student.shape != teacher.shape or not student.shape[:1] == positive.shape == negative.shape:
        raise ValueError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, positive "
            f"{tuple(positive.shape)} and negative {tuple(negative.shape)} disagree"
        )
    sums = _halves(
        _binary_kl, student, teacher, (object_temperature, background_temperature), (positive, negative)
    )
    return _divide(sums, normalizer(torch.stack([positive.sum(), negative.sum()])))


class _SumOfSquares(torch.autograd.Function):
    """``x.square().sum(1)`` in one pass over x, and one tensor of its size in the backward, not three.

    Derivatives of any order; no forward mode.
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
        (x,) = ctx.saved_tensors
        return cast(Tensor, x * (2 * grad).unsqueeze(1))


def _halves(
    divergence: Callable[[Tensor, Tensor, float], Tensor],
    student: Tensor,
    teacher: Tensor,
    temperatures: tuple[float, float],
    chosen: tuple[Tensor, Tensor],
) -> Decoupled:
    """Sums over the chosen rows of each half, at its temperature; one that both share is computed once."""
    found = {t: divergence(student, teacher, t) for t in set(temperatures)}
    return Decoupled(*(_sum_where(found[t], rows) for t, rows in zip(temperatures, chosen, strict=True)))


def _binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    s, t = widen(student) / temperature, widen(teacher) / temperature
    # log sigmoid(-x) is log(1 - sigmoid(x)) without the cancellation.
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (yes + no).sum(1)


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_p = F.log_softmax(widen(student) / temperature, dim=1)
    log_q = F.log_softmax(widen(teacher) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)


def _sum_where(values: Tensor, keep: Tensor) -> Tensor:
    # where, not a product: a non-finite value on the other half must not spoil this one.
    return torch.where(keep, values, 0).sum()


def _divide(sums: Decoupled, normalizers: Tensor) -> Decoupled:
    # Halves stay apart: one that nobody uses must not come back as a gradient of zeros, or of zero times nan.
    return Decoupled(sums.object / normalizers[0], sums.background / normalizers[1])
