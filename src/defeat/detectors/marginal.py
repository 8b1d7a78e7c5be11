"""A softmax head that knows more classes than are wanted, as a head of those that are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

_CLASS_SCORES = "roi_heads.box_predictor.cls_score"


class MarginalLinear(nn.Linear):
    """Class scores of K classes and of a background that includes the classes which were left out.

    A detector with C further outputs gives an object of theirs a low score for background. Were these outputs
    merely dropped, the softmax over the rest would call such an object one of the K classes. The background
    logit is therefore ``log(exp z_bg + sum_c exp z_c)`` over the outputs left out, so that the softmax is the
    marginal of the whole one: each of the K classes has exactly the probability that it has there.

    Args:
        kept: the layer of the K + 1 outputs, background first.
        weight: (C, D) of the outputs left out.
        bias: (C,) likewise.
    """

    def __init__(self, kept: nn.Linear, weight: Tensor, bias: Tensor) -> None:
        super().__init__(kept.in_features, kept.out_features, device="meta")
        self.weight, self.bias = kept.weight, kept.bias
        self.left_out = nn.Linear(kept.in_features, len(bias), device="meta")
        self.left_out.weight, self.left_out.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the logits (N, K + 1) of features (N, D)."""
        logits = super().forward(input)  # (N, K + 1)
        background = torch.cat([logits[:, :1], self.left_out(input)], dim=1)  # (N, 1 + C)
        marginal = background.float().logsumexp(1, keepdim=True)  # (N, 1)
        return torch.cat([marginal.to(logits.dtype), logits[:, 1:]], dim=1)


def include_in_background(
    detector: nn.Module, tensors: Mapping[str, Tensor], left_out: Sequence[int]
) -> None:
    """Add to the background of a softmax head, in place, the outputs of a source that the head lacks.

    Sigmoid heads score each class by itself, and stay as they are.

    Args:
        detector: with the selected outputs loaded.
        tensors: of the source, all its outputs.
        left_out: numbers of the outputs that are in none of the detector's classes.
    """
    if f"{_CLASS_SCORES}.weight" not in tensors:
        return
    predictor = cast(Any, detector).roi_heads.box_predictor
    kept = predictor.cls_score
    weight, bias = (
        tensors[f"{_CLASS_SCORES}.{part}"][list(left_out)].to(kept.weight) for part in ("weight", "bias")
    )
    predictor.cls_score = MarginalLinear(kept, weight, bias).train(kept.training)
