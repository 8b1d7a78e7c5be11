"""The losses: pure functions of tensors; each docstring gives the formula, its source and its normaliser."""

from defeat.distill.losses.decoupled import Decoupled, divide, widen
from defeat.distill.losses.maps import (
    channel_loss,
    decoupled_feature_loss,
    decoupled_feature_sums,
    pearson_loss,
)
from defeat.distill.losses.scores import decoupled_binary_kl, decoupled_kl, marginal_logits

__all__ = [
    "Decoupled",
    "channel_loss",
    "decoupled_binary_kl",
    "decoupled_feature_loss",
    "decoupled_feature_sums",
    "decoupled_kl",
    "divide",
    "marginal_logits",
    "pearson_loss",
    "widen",
]
