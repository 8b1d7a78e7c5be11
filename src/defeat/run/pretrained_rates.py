"""A lower learning rate for what a student starts with."""

from __future__ import annotations

import logging

from defeat.detectors import Detector
from defeat.detectors.class_order import is_head
from defeat.errors import ConfigError

log = logging.getLogger(__name__)


def pretrained_rates(student: Detector, factor: float | None) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter that a student's weights have filled.

    A classification head of which some outputs are new learns at the whole rate.

    Args:
        student: as it was built.
        factor: above 0; None for one rate.

    Returns:
        The factor by the parameter's name in :class:`~defeat.training.module.DetectionModule`; empty for one
        rate.

    Raises:
        ConfigError: another factor, or a student without weights.
    """
    if factor is None:
        return {}
    if factor <= 0:
        raise ConfigError(f"optim.pretrained_lr_mult={factor} has to be above 0; null is without")
    report = student.report
    if report is None:
        raise ConfigError(
            f"optim.pretrained_lr_mult={factor} is for what is pretrained, and the student starts from "
            "random weights: set student.weights or student.backbone_weights, or leave it out"
        )
    prefix = "student." if student.source else "student.backbone.body."
    names = [key for key in report.matched if not (report.new and is_head(key))]
    log.info("what %s filled learns at %g of the learning rate, all else at the whole", report.source, factor)
    return {prefix + name: factor for name in names}
