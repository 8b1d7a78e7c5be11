"""BatchNorm over all processes: ``trainer.sync_batchnorm=true``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from defeat.config import compose_config
from defeat.run.train import train
from defeat.training.module import DetectionModule
from tests.helpers.tiny import tiny, tiny_teacher


class Watch(pl.Callback):
    """Statistics of all BatchNorm layers, when the training starts and when it ends."""

    def __init__(self) -> None:
        self.kinds: dict[str, set[type]] = {}
        self.modes: dict[str, set[bool]] = {}
        self.before: dict[str, dict[str, Tensor]] = {}
        self.after: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = self._look(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.after = self._look(pl_module)

    def _look(self, module: pl.LightningModule) -> dict[str, dict[str, Tensor]]:
        assert isinstance(module, DetectionModule)
        assert module.teacher is not None
        seen = {}
        for name, model in (("student", module.student), ("teacher", module.teacher)):
            norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
            self.kinds[name] = {type(norm) for norm in norms.values()}
            self.modes[name] = {norm.training for norm in norms.values()}
            seen[name] = {n: torch.cat([m.running_mean, m.running_var]).clone() for n, m in norms.items()}
        return seen


@pytest.fixture
def cpu_passes_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch refuses SyncBatchNorm on a CPU, twice, though a single process has nothing to synchronise."""
    original = nn.SyncBatchNorm.forward

    def forward(self: nn.SyncBatchNorm, images: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "cpu")
            return original(self, images)

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    parallel = nn.parallel.DistributedDataParallel
    monkeypatch.setattr(parallel, "_passing_sync_batchnorm_handle", lambda self, module: None)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("cpu_passes_for_a_gpu")
def test_the_student_is_converted_and_the_teacher_keeps_its_statistics(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    ddp = ["trainer.accelerator=cpu", "trainer.strategy=ddp", "trainer.sync_batchnorm=true", "~logger"]
    norms = ["student.model.norm=batch", "teacher.model.norm=batch", "teacher.precision=as_built"]
    overrides = tiny(tmp_path / "run", scenes, *tiny_teacher(teacher), *norms, *ddp)
    watch = Watch()
    outcome = train(compose_config("train", ["+experiment=scenes", *overrides]), callbacks=[watch])
    assert outcome.steps == 2
    assert watch.kinds["student"] == {nn.SyncBatchNorm}
    assert watch.modes == {"student": {True}, "teacher": {False}}
    for name, before in watch.before["student"].items():
        assert not torch.equal(watch.after["student"][name], before), name
    assert len(watch.before["teacher"]) == len(watch.before["student"])
    for name, before in watch.before["teacher"].items():
        assert torch.equal(watch.after["teacher"][name], before), name
