"""The method: masks, losses, adapters, schedules, and the distiller that puts them together."""

from defeat.distill.adapters import conv3x3, conv3x3_relu, matching
from defeat.distill.distiller import Distiller
from defeat.distill.grids import Grids, box_cells, box_level
from defeat.distill.losses import (
    Decoupled,
    channel_loss,
    decoupled_binary_kl,
    decoupled_feature_loss,
    decoupled_kl,
    pearson_loss,
)
from defeat.distill.masks import (
    fine_grained_mask,
    full_mask,
    gaussian_mask,
    object_mask,
    random_mask,
    shared_mask,
)
from defeat.distill.terms import (
    AdaptedMaps,
    AnchorTerm,
    ComparedMaps,
    DistillBatch,
    FeatureTerm,
    HeadTerm,
    LevelPair,
    Term,
    WholeMapTerm,
)
from defeat.distill.weight_keys import WeightKey, weight_keys

__all__ = [
    "AdaptedMaps",
    "AnchorTerm",
    "ComparedMaps",
    "Decoupled",
    "DistillBatch",
    "Distiller",
    "FeatureTerm",
    "Grids",
    "HeadTerm",
    "LevelPair",
    "Term",
    "WeightKey",
    "WholeMapTerm",
    "box_cells",
    "box_level",
    "channel_loss",
    "conv3x3",
    "conv3x3_relu",
    "decoupled_binary_kl",
    "decoupled_feature_loss",
    "decoupled_kl",
    "fine_grained_mask",
    "full_mask",
    "gaussian_mask",
    "matching",
    "object_mask",
    "pearson_loss",
    "random_mask",
    "shared_mask",
    "weight_keys",
]
