"""Weight files: safe reading, and what they say about themselves. ``loading.py`` puts them into detectors."""

from defeat.detectors.weights.metadata import describe, read_model
from defeat.detectors.weights.plain_pickle import load_plain
from defeat.detectors.weights.read import read_weights
from defeat.detectors.weights.shipped import ASSETS, sha256, shipped_weights, weight_path
from defeat.detectors.weights.torchvision_weights import published
from defeat.detectors.weights.weight_file import WeightFile, unwrap

__all__ = [
    "ASSETS",
    "WeightFile",
    "describe",
    "load_plain",
    "published",
    "read_model",
    "read_weights",
    "sha256",
    "shipped_weights",
    "unwrap",
    "weight_path",
]
