"""Detectors as modules that can be exported: padded images in, tensors of fixed form out.

torchvision's detectors cannot be exported as they stand: their forward resizes, loops over images and asks
how many boxes are left. These modules share a detector's layers and compute the same detections.
"""

from defeat.export.graph.exportable import check_exportable, exportable
from defeat.export.graph.nms import onnx_translation

__all__ = ["check_exportable", "exportable", "onnx_translation"]
