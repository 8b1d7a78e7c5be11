"""COCO and Pascal VOC figures of detections, over ranks, from tensors or from a results file."""

from defeat.evaluation.coco_metrics import DEFAULT_BACKEND, DEFAULT_MAX_DETS, check_backend, check_max_dets
from defeat.evaluation.detections import Detections, read_detections, write_detections
from defeat.evaluation.evaluation import COCO_KEYS, VOC_KEYS, Evaluation
from defeat.evaluation.metrics import DetectionMetrics
from defeat.evaluation.results import evaluate_results, read_results, write_results
from defeat.evaluation.tables import evaluation_table

__all__ = [
    "COCO_KEYS",
    "DEFAULT_BACKEND",
    "DEFAULT_MAX_DETS",
    "VOC_KEYS",
    "DetectionMetrics",
    "Detections",
    "Evaluation",
    "check_backend",
    "check_max_dets",
    "evaluate_results",
    "evaluation_table",
    "read_detections",
    "read_results",
    "write_detections",
    "write_results",
]
