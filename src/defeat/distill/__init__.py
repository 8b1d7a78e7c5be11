"""The method: masks, losses, adapters, schedules, and the distiller that puts them together."""

from defeat.distill.adapters import conv3x3, conv3x3_relu
from defeat.distill.distiller import Distiller
from defeat.distill.losses import Decoupled, decoupled_feature_loss, decoupled_kl
from defeat.distill.masks import box_cells, box_level, full_mask, gaussian_mask, object_mask, shared_mask
from defeat.distill.terms import FeatureTerm, HeadTerm, Pair

__all__ = [
    "Decoupled",
    "Distiller",
    "FeatureTerm",
    "HeadTerm",
    "Pair",
    "box_cells",
    "box_level",
    "conv3x3",
    "conv3x3_relu",
    "decoupled_feature_loss",
    "decoupled_kl",
    "full_mask",
    "gaussian_mask",
    "object_mask",
    "shared_mask",
]
