"""Detectors: building them, filling them with weights, and seeing into them."""

from defeat.detectors.builders import faster_rcnn, fcos, retinanet
from defeat.detectors.capture import Captured, DetectorSpec, Level, capture, inspect_detector
from defeat.detectors.create import Detector, create_detector
from defeat.detectors.detection_limit import allow_detections
from defeat.detectors.frozen_teacher import FrozenTeacher
from defeat.detectors.inference import detect, to_unit_range
from defeat.detectors.loading import LoadReport, load_backbone_weights, load_detector_weights
from defeat.detectors.weights import WeightFile, read_weights

__all__ = [
    "Captured",
    "Detector",
    "DetectorSpec",
    "FrozenTeacher",
    "Level",
    "LoadReport",
    "WeightFile",
    "allow_detections",
    "capture",
    "create_detector",
    "detect",
    "faster_rcnn",
    "fcos",
    "inspect_detector",
    "load_backbone_weights",
    "load_detector_weights",
    "read_weights",
    "retinanet",
    "to_unit_range",
]
