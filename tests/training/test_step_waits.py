"""What a training step does around detector and distiller waits for no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from defeat.training.module import DetectionModule
from defeat.training.nonfinite import NonFinite
from defeat.types import Batch, Target


class Detector(nn.Module):
    """Two losses of the pixels, without anything that torchvision would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        pixels = self.scale * torch.stack(images)
        return {"loss_classifier": pixels.mean(), "loss_box_reg": pixels.square().mean()}


class Distiller(nn.Module):
    """A loss of the student's weights."""

    def forward(self, student: Any, teacher: nn.Module, seen: Any, progress: float) -> dict[str, Tensor]:
        return {"neck_object": (student.scale - 2).square()}


class Reads(TorchDispatchMode):
    """Lets no number be read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number is waited for"
        return func(*args, **(kwargs or {}))


def prepared(device: str) -> tuple[DetectionModule, Batch]:
    nonfinite = NonFinite("unused", action="stop", limit=1)
    module: Any = DetectionModule(
        Detector(), ("a",), teacher=Detector(), distiller=Distiller(), nonfinite=nonfinite
    )
    # barebones is what lets a module log without a loop that would collect it
    module.trainer = Trainer(barebones=True, accelerator="cpu", devices=1)
    module.to(device).train()
    target = Target(
        boxes=torch.zeros(0, 4, device=device),
        labels=torch.zeros(0, dtype=torch.int64, device=device),
        ignore=torch.zeros(0, dtype=torch.bool, device=device),
        area=torch.zeros(0, device=device),
        index=torch.zeros((), dtype=torch.int64, device=device),
    )
    return module, Batch([torch.randint(256, (3, 8, 8), dtype=torch.uint8, device=device)] * 2, [target] * 2)


def step(module: DetectionModule, batch: Batch) -> Tensor:
    module.on_train_batch_start(batch, 0)
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach()


@pytest.mark.filterwarnings("ignore:.*barebones.*")
def test_a_step_reads_no_number() -> None:
    module, batch = prepared("cpu")
    with Reads():
        loss = step(module, batch)
    assert loss > 0
    assert module.student.get_parameter("scale").grad is not None


@pytest.mark.filterwarnings("ignore:.*barebones.*")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to wait for")
def test_a_step_does_not_wait_for_a_gpu() -> None:
    module, batch = prepared("cuda")
    step(module, batch)  # what CUDA sets up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(module, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
