"""COCO and Pascal VOC figures of detections, over ranks, from tensors or from a results file."""

from defeat.evaluation.evaluation import COCO_KEYS, VOC_KEYS, Evaluation
from defeat.evaluation.metrics import DetectionMetrics

__all__ = ["COCO_KEYS", "VOC_KEYS", "DetectionMetrics", "Evaluation"]
