"""mmdetection's and detectron2's detectors written down again, naively, on their own state dicts.

One picture, float64, loops over anchors, boxes and samples; convolutions and sorting are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.foreign import BLOCKS

Maps = dict[int, Tensor]
"""(C, H, W) by the exponent of the stride."""

BGR_MEAN = (103.53, 116.28, 123.675)


class Found(NamedTuple):
    """Detections, the best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    """From 0 on."""


class Foreign:
    """A detector of a framework.

    Args:
        tensors: under the framework's names.
        framework: ``mmdetection`` or ``detectron2``.
        caffe: BGR pixels of 0 to 255 and the stride in the first 1x1; else normalised RGB, and in the 3x3.
        relu: whether P7 is made of the positive part of P6.
        groups: of the 3x3 convolutions.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        framework: str,
        backbone: str,
        *,
        caffe: bool,
        relu: bool = True,
        groups: int = 1,
    ):
        self.t = {name: x.double() for name, x in tensors.items()}
        self.d2, self.backbone, self.caffe = framework == "detectron2", backbone, caffe
        self.relu, self.groups = relu, groups
        self.known: dict[int, Maps] = {}

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        weight, bias = self.t[f"{name}.weight"], self.t.get(f"{name}.bias")
        return F.conv2d(x[None], weight, bias, stride, padding, groups=groups)[0]

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (
            self.t[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def pixels(self, image: Tensor) -> Tensor:
        """(3, H, W) RGB of 0 to 255."""
        mean = torch.tensor(BGR_MEAN, dtype=torch.float64)[:, None, None]
        if self.caffe:
            return image.double().flip(0) - mean
        std = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float64)[:, None, None]
        return (image.double() - mean.flip(0)) / std

    def body(self, image: Tensor) -> Maps:
        root = "backbone.bottom_up." if self.d2 else "backbone."
        stem = f"{root}stem.conv1" if self.d2 else f"{root}conv1"
        x = F.relu(
            self.norm(self.conv(self.pixels(image), stem, 2, 3), f"{stem}.norm" if self.d2 else f"{root}bn1")
        )
        x = F.max_pool2d(x[None], 3, 2, 1)[0]
        maps = {}
        for stage, count in enumerate(BLOCKS[self.backbone]):
            for block in range(count):
                name = f"{root}res{stage + 2}.{block}" if self.d2 else f"{root}layer{stage + 1}.{block}"
                x = self.block(x, name, 2 if stage and not block else 1)
            maps[stage + 2] = x
        return maps

    def block(self, x: Tensor, name: str, stride: int) -> Tensor:
        out = x
        for k in (1, 2, 3):
            here = stride if k == (1 if self.caffe else 2) else 1
            out = self.conv(out, f"{name}.conv{k}", here, int(k == 2), self.groups if k == 2 else 1)
            out = self.norm(out, f"{name}.conv{k}.norm" if self.d2 else f"{name}.bn{k}")
            out = F.relu(out) if k < 3 else out
        shortcut = f"{name}.shortcut" if self.d2 else f"{name}.downsample.0"
        if f"{shortcut}.weight" in self.t:
            norm = f"{shortcut}.norm" if self.d2 else f"{name}.downsample.1"
            x = self.norm(self.conv(x, shortcut, stride), norm)
        return F.relu(out + x)

    def pyramid(self, image: Tensor, finest: int) -> Maps:
        """P2 to P6 of Faster R-CNN, P3 to P7 of RetinaNet; once for a picture."""
        if id(image) not in self.known:
            self.known[id(image)] = self.make_pyramid(image, finest)
        return self.known[id(image)]

    def make_pyramid(self, image: Tensor, finest: int) -> Maps:
        stages = self.body(image)
        maps: Maps = {}
        above = None
        for level in (5, 4, 3, 2):
            if level < finest:
                break
            lateral = f"backbone.fpn_lateral{level}" if self.d2 else f"neck.lateral_convs.{level - finest}"
            inner = self.maybe_norm(stages[level], lateral, 0)
            if above is not None:
                inner = inner + above.repeat_interleave(2, 1).repeat_interleave(2, 2)
            above = inner
            output = f"backbone.fpn_output{level}" if self.d2 else f"neck.fpn_convs.{level - finest}"
            maps[level] = self.maybe_norm(inner, output, 1)
        if finest == 2:
            maps[6] = maps[5][:, ::2, ::2]
            return maps
        p6, p7 = ("backbone.top_block.p6", "backbone.top_block.p7") if self.d2 else (
            "neck.fpn_convs.3.conv", "neck.fpn_convs.4.conv")  # fmt: skip
        taken = stages[5] if self.t[f"{p6}.weight"].shape[1] == len(stages[5]) else maps[5]
        maps[6] = self.conv(taken, p6, 2, 1)
        maps[7] = self.conv(F.relu(maps[6]) if self.relu else maps[6], p7, 2, 1)
        return maps

    def maybe_norm(self, x: Tensor, name: str, padding: int) -> Tensor:
        """A convolution, and the norm behind it where the file has one."""
        x = self.conv(x, name if self.d2 else f"{name}.conv", 1, padding)
        norm = f"{name}.{'norm' if self.d2 else 'bn'}"
        return self.norm(x, norm) if f"{norm}.weight" in self.t else x

    # Faster R-CNN

    def proposals(self, image: Tensor, most: int) -> Tensor:
        boxes, scores, levels = [], [], []
        rpn = "proposal_generator.rpn_head." if self.d2 else "rpn_head."
        conv, cls, reg = ("conv", "objectness_logits", "anchor_deltas") if self.d2 else (
            "rpn_conv", "rpn_cls", "rpn_reg")  # fmt: skip
        for level, x in self.pyramid(image, 2).items():
            hidden = x
            for name in (conv, f"{conv}.conv0", f"{conv}.conv1", f"{conv}.0.conv", f"{conv}.1.conv"):
                if f"{rpn}{name}.weight" in self.t:
                    hidden = F.relu(self.conv(hidden, rpn + name, 1, 1))
            logits, deltas = self.conv(hidden, rpn + cls), self.conv(hidden, rpn + reg)
            anchors = torch.stack([*cells(x, 2**level, [8 * 2**level])])  # (H, W, A) in this order
            boxes.append(clip(decode(anchors, by_anchor(deltas, 4), (1, 1)), image))
            scores.append(by_anchor(logits, 1)[:, 0])
            levels.append(torch.full((len(anchors),), level))
        box = torch.cat(boxes)
        there = (box[:, 2:] > box[:, :2]).all(1)
        box = box[there]
        return box[nms(box, torch.cat(scores)[there], torch.cat(levels)[there], 0.7, most)]

    def faster_rcnn(self, image: Tensor, most: int) -> Found:
        boxes = self.proposals(image, most)
        maps = self.pyramid(image, 2)
        regions = [roi_align(maps, box) for box in boxes]  # (C, 7, 7) each
        convs = "roi_heads.box_head.conv{}" if self.d2 else "roi_head.bbox_head.shared_convs.{}"
        for name in (convs.format(i) for i in range(5)):
            if f"{name if self.d2 else f'{name}.conv'}.weight" in self.t:
                regions = [F.relu(self.maybe_norm(x, name, 1)) for x in regions]
        pooled = torch.stack(regions).flatten(1)
        head = "roi_heads.box_head.fc" if self.d2 else "roi_head.bbox_head.shared_fcs."
        for layer in (layer for layer in range(3) if f"{head}{layer}.weight" in self.t):
            pooled = F.relu(pooled @ self.t[f"{head}{layer}.weight"].T + self.t[f"{head}{layer}.bias"])
        predictor = "roi_heads.box_predictor." if self.d2 else "roi_head.bbox_head."
        cls, reg = (
            predictor + name for name in (("cls_score", "bbox_pred") if self.d2 else ("fc_cls", "fc_reg"))
        )
        scores = (pooled @ self.t[f"{cls}.weight"].T + self.t[f"{cls}.bias"]).softmax(1)[:, :-1]
        deltas = pooled @ self.t[f"{reg}.weight"].T + self.t[f"{reg}.bias"]
        found = [
            (clip(decode(box[None], deltas[i, 4 * k : 4 * k + 4][None], (10, 5)), image)[0], scores[i, k], k)
            for i, box in enumerate(boxes)
            for k in range(scores.shape[1])
            if scores[i, k] > 0.05
        ]
        return best(found)

    # RetinaNet

    def retinanet(self, image: Tensor) -> Found:
        head = "head." if self.d2 else "bbox_head."
        cls, reg = ("cls_score", "bbox_pred") if self.d2 else ("retina_cls", "retina_reg")
        found = []
        for level, x in self.pyramid(image, 3).items():
            sizes = [4 * 2**level * 2 ** (octave / 3) for octave in range(3)]
            scores = x
            boxes = x
            for i in range(4):
                a, b = (f"cls_subnet.{2 * i}", f"bbox_subnet.{2 * i}") if self.d2 else (
                    f"cls_convs.{i}.conv", f"reg_convs.{i}.conv")  # fmt: skip
                scores, boxes = (
                    F.relu(self.conv(scores, head + a, 1, 1)),
                    F.relu(self.conv(boxes, head + b, 1, 1)),
                )
            deltas = by_anchor(self.conv(boxes, head + reg, 1, 1), 4)
            anchors = torch.stack([*cells(x, 2**level, sizes, sizes_first=self.d2)])
            logits = self.conv(scores, head + cls, 1, 1)
            probability = by_anchor(logits, len(logits) // 9).sigmoid()
            order = probability.flatten().sort(descending=True)
            classes = probability.shape[1]
            boxes = clip(decode(anchors, deltas, (1, 1)), image)
            for score, at in zip(order.values[:1000].tolist(), order.indices[:1000].tolist(), strict=True):
                if score > 0.05:
                    found.append(
                        (boxes[at // classes], torch.tensor(score, dtype=torch.float64), at % classes)
                    )
        return best(found)


def cells(x: Tensor, stride: int, sizes: list[float], *, sizes_first: bool = False) -> Iterator[Tensor]:
    """Anchors cell by cell, row by row: not rounded, around the cell's upper left corner."""
    ratios = (0.5, 1.0, 2.0)  # height / width
    shapes = (
        [(s, r) for s in sizes for r in ratios] if sizes_first else [(s, r) for r in ratios for s in sizes]
    )
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            for size, ratio in shapes:
                w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
                cx, cy = column * stride, row * stride
                yield torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dtype=torch.float64)


def by_anchor(x: Tensor, values: int) -> Tensor:
    """(A x values, H, W) to (H x W x A, values)."""
    return x.permute(1, 2, 0).reshape(-1, values)


def decode(boxes: Tensor, deltas: Tensor, weights: tuple[float, float]) -> Tensor:
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    cx, cy = (
        boxes[:, 0] + w / 2 + deltas[:, 0] / weights[0] * w,
        boxes[:, 1] + h / 2 + deltas[:, 1] / weights[0] * h,
    )
    most = math.log(1000 / 16)
    w, h = (
        w * (deltas[:, 2] / weights[1]).clamp(max=most).exp(),
        h * (deltas[:, 3] / weights[1]).clamp(max=most).exp(),
    )
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)


def clip(boxes: Tensor, image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    return torch.stack([boxes[:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], 1)


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, most: int) -> list[int]:
    """Positions that are kept, the best first; boxes of other groups do not matter."""
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in scores.sort(descending=True).indices.tolist():
        if len(kept) == most:
            break
        rest = [j for j in kept if groups[j] == groups[i]]
        sides = (
            torch.minimum(boxes[i, 2:], boxes[rest, 2:]) - torch.maximum(boxes[i, :2], boxes[rest, :2])
        ).clamp(0)
        both = sides[:, 0] * sides[:, 1]
        if not (both / (area[i] + area[rest] - both) > overlap).any():
            kept.append(i)
    return kept


def best(found: list[tuple[Tensor, Tensor, int]]) -> Found:
    boxes = torch.stack([box for box, _, _ in found])
    scores, labels = torch.stack([score for _, score, _ in found]), torch.tensor([k for *_, k in found])
    kept = nms(boxes, scores, labels, 0.5, 100)
    return Found(boxes[kept], scores[kept], labels[kept])


def roi_align(maps: Maps, box: Tensor) -> Tensor:
    """(C, 7, 7): the mean of as many samples as a bin has cells, half a cell to the upper left."""
    x0, y0, x1, y1 = box.tolist()
    level = int(min(max(math.floor(4 + math.log2(math.sqrt((x1 - x0) * (y1 - y0)) / 224 + 1e-12)), 2), 5))
    x, scale = maps[level], 2.0**-level
    left, top, w, h = x0 * scale - 0.5, y0 * scale - 0.5, (x1 - x0) * scale / 7, (y1 - y0) * scale / 7
    columns, rows = math.ceil(w), math.ceil(h)
    out = torch.zeros(len(x), 7, 7, dtype=torch.float64)
    for i in range(7):
        for j in range(7):
            samples = [
                bilinear(x, top + i * h + (a + 0.5) * h / rows, left + j * w + (b + 0.5) * w / columns)
                for a in range(rows)
                for b in range(columns)
            ]
            out[:, i, j] = torch.stack(samples).mean(0)
    return out


def bilinear(x: Tensor, row: float, column: float) -> Tensor:
    height, width = x.shape[1:]
    if not (-1 <= row <= height and -1 <= column <= width):
        return torch.zeros(len(x), dtype=torch.float64)
    row, column = min(max(row, 0.0), height - 1.0), min(max(column, 0.0), width - 1.0)
    i, j = int(row), int(column)
    below, right = min(i + 1, height - 1), min(j + 1, width - 1)
    a, b = row - i, column - j
    upper = x[:, i, j] * (1 - b) + x[:, i, right] * b
    return upper * (1 - a) + (x[:, below, j] * (1 - b) + x[:, below, right] * b) * a
