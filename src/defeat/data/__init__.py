"""Reading COCO, Pascal VOC and YOLO, and what Lightning trains and evaluates on."""

from defeat.data.boxes import CleanBoxes, clean_boxes
from defeat.data.coco import read_coco
from defeat.data.datamodule import DetectionDataModule
from defeat.data.dataset import DetectionDataset, collate, drop_undecodable
from defeat.data.fingerprint import fingerprint
from defeat.data.folder import folder_data
from defeat.data.images import read_image, to_rgb_tensor
from defeat.data.paths import resolve_inside
from defeat.data.voc import read_voc
from defeat.data.worker_errors import worker_errors
from defeat.data.yolo import read_yolo

__all__ = [
    "CleanBoxes",
    "DetectionDataModule",
    "DetectionDataset",
    "clean_boxes",
    "collate",
    "drop_undecodable",
    "fingerprint",
    "folder_data",
    "read_coco",
    "read_image",
    "read_voc",
    "read_yolo",
    "resolve_inside",
    "to_rgb_tensor",
    "worker_errors",
]
