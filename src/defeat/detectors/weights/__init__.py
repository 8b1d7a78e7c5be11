"""Weight files: safe reading, and what they say about themselves. ``loading.py`` puts them into detectors."""

from defeat.detectors.weights.plain_pickle import load_plain
from defeat.detectors.weights.read import read_weights
from defeat.detectors.weights.shipped import ASSETS, sha256, shipped_weights, weight_path
from defeat.detectors.weights.weight_file import WeightFile

__all__ = [
    "ASSETS",
    "WeightFile",
    "load_plain",
    "read_weights",
    "sha256",
    "shipped_weights",
    "weight_path",
]
