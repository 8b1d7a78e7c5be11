"""The terms a distiller is made of: what is compared, on which mask, with which weights."""

from defeat.distill.terms.adapted_maps import AdaptedMaps
from defeat.distill.terms.anchors import AnchorTerm
from defeat.distill.terms.base import (
    ComparedMaps,
    DistillBatch,
    GradientSite,
    LevelPair,
    LossDict,
    Maps,
    Term,
)
from defeat.distill.terms.features import FeatureTerm
from defeat.distill.terms.head import HeadTerm
from defeat.distill.terms.whole_map import MapLoss, WholeMapTerm

__all__ = [
    "AdaptedMaps",
    "AnchorTerm",
    "ComparedMaps",
    "DistillBatch",
    "FeatureTerm",
    "GradientSite",
    "HeadTerm",
    "LevelPair",
    "LossDict",
    "MapLoss",
    "Maps",
    "Term",
    "WholeMapTerm",
]
