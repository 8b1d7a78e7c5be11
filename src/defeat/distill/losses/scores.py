"""Losses of class scores: DeFeat's KL divergences on object and background, softmax and sigmoid.

They are pure functions, computed in float32 at least, whatever precision the logits come in (Guo et al., CVPR
2021, arXiv 2103.14475, Eq. 6-9).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from defeat.distill.losses.decoupled import Decoupled, divide, widen
from defeat.distill.normalizers import Normalizer, local_normalizer


def marginal_logits(logits: Tensor, known: Tensor) -> Tensor:
    """Logits of some classes and of anything else, whose softmax is the marginal of the whole one.

    A teacher that lacks classes of the student can be compared with it on the classes that both know: the
    probabilities of all other outputs, background among them, are added up on either side,
    ``z_0 = log sum_{c not known} exp z_c``.

    Args:
        logits: (N, K + 1), background first.
        known: (K',) int64 labels, from 1 on.

    Returns:
        (N, K' + 1), everything else first.
    """
    logits = widen(logits)
    is_known = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    is_known = is_known.index_fill(0, known, True)  # (K + 1,)
    others = logits.masked_fill(is_known, -torch.inf).logsumexp(1, keepdim=True)  # (N, 1)
    return torch.cat([others, logits[:, known]], dim=1)


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    is_object: Tensor,
    is_background: Tensor | None = None,
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
        is_background: (N,) bool, proposals in neither set do not count; None for all others.
        object_temperature: T of the object half.
        background_temperature: T of the background half.
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
    if is_background is None:
        is_background = ~is_object
    temperatures = (object_temperature, background_temperature)
    sums = _decoupled_sums(_softmax_kl, student, teacher, temperatures, (is_object, is_background))
    counts = torch.stack([is_object.sum(), is_background.sum()])  # (2,)
    return divide(sums, normalizer(counts.sum().expand(2) if pooled else counts))


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
        object_temperature: T of the positive anchors.
        background_temperature: T of the negative anchors.
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
    temperatures = (object_temperature, background_temperature)
    sums = _decoupled_sums(_binary_kl, student, teacher, temperatures, (positive, negative))
    return divide(sums, normalizer(torch.stack([positive.sum(), negative.sum()])))


def _decoupled_sums(
    divergence: Callable[[Tensor, Tensor, float], Tensor],
    student: Tensor,
    teacher: Tensor,
    temperatures: tuple[float, float],
    chosen: tuple[Tensor, Tensor],
) -> Decoupled:
    """Add up the divergences of the chosen rows of each half, (N,) bool, at the temperature of the half."""
    # Divergences (N,) by temperature: two halves of one temperature share them.
    by_temperature = {t: divergence(student, teacher, t) for t in set(temperatures)}
    sums = (_sum_where(by_temperature[t], rows) for t, rows in zip(temperatures, chosen, strict=True))
    return Decoupled(*sums)


def _softmax_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_p = F.log_softmax(widen(student) / temperature, dim=1)  # (N, K + 1)
    log_q = F.log_softmax(widen(teacher) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)  # (N,)


def _binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    s, t = widen(student) / temperature, widen(teacher) / temperature  # (N, K)
    # log sigmoid(-x) is log(1 - sigmoid(x)) without the cancellation.
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (yes + no).sum(1)  # (N,)


def _sum_where(values: Tensor, keep: Tensor) -> Tensor:
    # where, not a product: a non-finite value on the other half must not spoil this one.
    return torch.where(keep, values, 0).sum()
