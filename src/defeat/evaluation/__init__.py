"""COCO and Pascal VOC figures of detections, over ranks, from tensors or from a results file."""

from defeat.evaluation.detections import Detections, read_detections, write_detections
from defeat.evaluation.evaluation import COCO_KEYS, VOC_KEYS, Evaluation
from defeat.evaluation.metrics import DetectionMetrics
from defeat.evaluation.results import evaluate_results, read_results, write_results
from defeat.evaluation.tables import table

__all__ = [
    "COCO_KEYS",
    "VOC_KEYS",
    "DetectionMetrics",
    "Detections",
    "Evaluation",
    "evaluate_results",
    "read_detections",
    "read_results",
    "table",
    "write_detections",
    "write_results",
]
