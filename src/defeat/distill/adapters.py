"""The student's adaptation layers (phi in Eq. 4-5): from its channels to the teacher's."""

from __future__ import annotations

import torch
from torch import nn


def conv3x3(student_channels: int, teacher_channels: int) -> nn.Module:
    """3x3 convolution without activation, for pyramid levels. Starts close to zero, as published."""
    conv = nn.Conv2d(student_channels, teacher_channels, 3, padding=1)
    with torch.no_grad():
        nn.init.trunc_normal_(conv.weight, std=1.0, a=-2.0, b=2.0).mul_(1e-4)
    return conv


def conv3x3_relu(student_channels: int, teacher_channels: int) -> nn.Module:
    """The same followed by a ReLU, for backbone stages, whose features are rectified too."""
    return nn.Sequential(conv3x3(student_channels, teacher_channels), nn.ReLU())


def matching(student_channels: int, teacher_channels: int) -> nn.Module:
    """Nothing where the channels agree, a 1x1 convolution where they do not: for losses free of scale."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, 1)
