"""Detectors of mmdetection, detectron2 and other users of torchvision, made into teachers of this project."""
