"""A step of torchdistill with the same detectors, the same batch and mean squared errors of P2 to P5.

torchdistill's box runs both models through forward processes, keeps maps by forward hooks and sums losses of
the model and of its terms, as its own example of object detection does. That example leaves the teacher in
the mode it was built in, training, and gives it the targets too: the teacher resizes the images, proposes,
samples and computes its losses, without gradients. So does this.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

from case import Case, seed_step, torchvisions_pooling
from torch import Tensor

from defeat.detectors.inference import to_unit_range

MAPS = tuple(f"backbone.fpn.layer_blocks.{i}" for i in range(4))
"""Modules whose outputs are P2 to P5; P6 is pooled by a module that has several outputs."""


def torchdistill(case: Case) -> Callable[[], Tensor]:
    """Build the box; its losses are those of the kind ``plain`` of :mod:`case`.

    Raises:
        ImportError: torchdistill is not installed.
    """
    from torchdistill.core.distillation import get_distillation_box

    # What the student has learned from a term is divided by 2 and by the number of levels there.
    term = case.distiller("plain").weights["neck_object"] / 2 / len(MAPS)
    teacher = copy.deepcopy(case.teacher).train()
    logging.disable(logging.INFO)  # a line for every module that it looks at, at the root logger
    box = get_distillation_box(teacher, case.student, {}, _config(case, term), case.device, None, False, 1.0)
    logging.disable(logging.NOTSET)
    box.pre_epoch_process(epoch=0)

    @torchvisions_pooling()
    def step() -> Tensor:
        seed_step()
        images = to_unit_range(case.batch.images)
        with case.autocast():
            loss = box.forward_process(images, list(case.batch.targets), {})
        box.post_forward_process(loss=loss)
        return loss.detach()

    return step


def _config(case: Case, weight: float) -> dict[str, Any]:
    terms = {path: _term(path, weight) for path in MAPS}
    model = {"forward_proc": "forward_batch_target", "forward_hook": {"output": list(MAPS)}}
    optimizer = dict(case.config.optim.optimizer)
    name = optimizer.pop("_target_").removeprefix("torch.optim.")
    del optimizer["_partial_"]
    return {
        "num_epochs": 1,
        "teacher": {**model, "requires_grad": False},
        "student": model,
        "optimizer": {"key": name, "kwargs": optimizer},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"model_term": {"weight": 1.0}, "sub_terms": terms},
        },
    }


def _term(name: str, weight: float) -> dict[str, Any]:
    student, teacher = (
        {"is_from_teacher": is_teacher, "module_path": name, "io": "output"} for is_teacher in (False, True)
    )
    wrapper = {"key": "SimpleLossWrapper", "kwargs": {"input": student, "target": teacher}}
    loss = {"key": "MSELoss", "kwargs": {"reduction": "mean"}}
    return {"criterion": loss, "criterion_wrapper": wrapper, "weight": weight}
