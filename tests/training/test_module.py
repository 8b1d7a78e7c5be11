from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from defeat.data import collate
from defeat.detectors import FrozenTeacher, faster_rcnn, retinanet
from defeat.detectors.inference import to_unit_range
from defeat.distill import Distiller, FeatureTerm
from defeat.training.lr_schedules import warmup_cosine, warmup_multistep
from defeat.training.module import DetectionModule
from defeat.types import Target
from tests.helpers.narrow import NARROW

SMALL = {
    "backbone": NARROW,
    "min_size": 64,
    "max_size": 64,
    "norm": "batch",
    "trainable_layers": 5,
    "box_head_channels": 16,
    "fpn_channels": 8,
}


def samples(n: int = 4) -> list[tuple[torch.Tensor, Target]]:
    def sample(i: int) -> tuple[torch.Tensor, Target]:
        target = Target(
            boxes=torch.tensor([[4.0, 4, 40, 40]]),
            labels=torch.tensor([1 + i % 2]),
            ignore=torch.tensor([False]),
            area=torch.tensor([36.0 * 36]),
            index=torch.tensor(i),
        )
        return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), target

    return [sample(i) for i in range(n)]


def loader() -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(samples(), batch_size=2, collate_fn=collate)  # type: ignore[arg-type]


def module(distilled: bool = True, norm: str = "batch") -> DetectionModule:
    student = faster_rcnn(3, **{**SMALL, "norm": norm})
    adam = partial(torch.optim.AdamW, lr=1e-3)
    if not distilled:
        return DetectionModule(student, ["a", "b"], optimizer=adam)
    teacher = faster_rcnn(3, **{**SMALL, "backbone": NARROW})
    term = partial(FeatureTerm, object_weight=1.0, background_weight=1.0)
    distiller = Distiller(student, teacher, terms={"neck": term})
    return DetectionModule(
        student,
        ["a", "b"],
        optimizer=adam,
        teacher=FrozenTeacher(teacher),
        distiller=distiller,
        provenance={"config": {}},
    )


def fit(made: DetectionModule, folder: Path, steps: int = 2, **more: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=1,
        enable_checkpointing=False,
        num_sanity_val_steps=1,
        **more,
    )
    trainer.fit(made, loader(), loader())
    return trainer


def test_the_teacher_is_bit_identical_after_training_and_student_and_adapters_are_not(tmp_path: Path) -> None:
    made = module()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    fit(made, tmp_path)
    after = made.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("teacher."))
    assert not torch.equal(
        after["student.backbone.body.conv1.weight"], before["student.backbone.body.conv1.weight"]
    )
    adapter = "distiller.terms.neck.adapters.layers.4.weight"
    assert not torch.equal(after[adapter], before[adapter])


def test_the_teacher_stays_frozen_and_in_eval_mode() -> None:
    made = module()
    made.train()
    assert made.student.training
    assert made.teacher is not None
    assert not any(m.training for m in made.teacher.modules())
    assert not any(p.requires_grad for p in made.teacher.parameters())


def test_the_schedule_of_the_distillation_is_told_how_much_of_the_training_is_done(tmp_path: Path) -> None:
    made = module()
    assert made.distiller is not None
    told: list[float] = []

    def schedule(progress: float) -> float:
        told.append(progress)
        return 1.0

    made.distiller.schedule = schedule
    fit(made, tmp_path, steps=4)
    assert told == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_gradients_live_from_the_backward_to_the_step(accumulated: int, tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def __init__(self) -> None:
            self.alive: list[bool] = []
            self.used: list[bool] = []

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.used.append(any(p.grad is not None for p in pl_module.parameters()))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.alive.append(any(p.grad is not None for p in pl_module.parameters()))

    watch = Watch()
    fit(module(), tmp_path, accumulate_grad_batches=accumulated, callbacks=[watch])
    assert watch.used == [True] * 2
    assert watch.alive == ([True] * (accumulated - 1) + [False]) * 2


@pytest.fixture
def _process_group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


class Sent(pl.Callback):
    """What DDP sends to all processes before a forward."""

    names: set[str]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parallel: Any = trainer.strategy.model
        self.names = set(parallel.named_module_buffers)


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_processes_send_each_other_only_what_changes(norm: str, tmp_path: Path) -> None:
    made, sent = module(norm=norm), Sent()
    fit(made, tmp_path, strategy="ddp", devices=1, callbacks=[sent])
    norms = {name: layer for name, layer in made.student.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    kept = ("running_mean", "running_var", "num_batches_tracked")
    assert sent.names == {f"student.{name}.{own}" for name in norms for own in kept}
    assert bool(sent.names) == (norm == "batch")


def test_no_hook_is_left_after_training(tmp_path: Path) -> None:
    made = module()
    fit(made, tmp_path)
    assert sum(len(m._forward_hooks) for part in (made.student, made.teacher) for m in part.modules()) == 0  # type: ignore[union-attr]


def test_checkpoints_leave_the_teacher_out_and_load_strictly_all_the_same(tmp_path: Path) -> None:
    made = module()
    trainer = fit(made, tmp_path)
    path = tmp_path / "x.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert not [k for k in content["state_dict"] if k.startswith("teacher.")]
    assert content["defeat"] == {"config": {}, "classes": ["a", "b"]}
    other = module()
    other.on_load_checkpoint(content)
    other.load_state_dict(content["state_dict"], strict=True)
    own = other.state_dict()
    assert all(torch.equal(own[k], v) for k, v in made.state_dict().items() if not k.startswith("teacher."))


def test_any_other_missing_key_is_still_an_error(tmp_path: Path) -> None:
    made = module()
    trainer = fit(made, tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    del content["state_dict"]["distiller.terms.neck.adapters.layers.4.weight"]
    made.on_load_checkpoint(content)
    with pytest.raises(RuntimeError, match=r"Missing key.*adapters\.layers\.4\.weight"):
        made.load_state_dict(content["state_dict"], strict=True)


def test_a_sanity_check_logs_no_figures_and_validation_does(tmp_path: Path) -> None:
    trainer = fit(module(distilled=False), tmp_path)
    assert {"val/AP", "val_AP_class/a", "val/voc_AP50_allpoint"} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics["val/AP"] >= 0


def test_background_is_never_a_detection() -> None:
    made = DetectionModule(
        retinanet(3, backbone=NARROW, fpn_channels=8, min_size=64, max_size=64, score_thresh=0.0),
        ["a", "b"],
    ).eval()
    with torch.no_grad():
        raw = made.student(to_unit_range([samples(1)[0][0]]))[0]
        (found,) = made([samples(1)[0][0]])
    assert (raw["labels"] == 0).any(), "torchvision's RetinaNet returns it"
    assert set(found["labels"].tolist()) == {1, 2}
    assert len(found["labels"]) == len(found["boxes"]) == len(found["scores"])


def test_teacher_and_distiller_come_together() -> None:
    with pytest.raises(ValueError, match="together"):
        DetectionModule(faster_rcnn(3, **SMALL), ["a", "b"], teacher=FrozenTeacher(faster_rcnn(3, **SMALL)))


def test_images_become_floats_in_the_unit_range() -> None:
    (image,) = to_unit_range([torch.tensor([0, 51, 255], dtype=torch.uint8)])
    assert image.tolist() == pytest.approx([0, 0.2, 1])


def rates(schedule, steps: int, **settings) -> list[float]:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rate = schedule(optimizer, total_steps=steps, **settings)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rate.step()
    return found


def test_warmup_and_steps() -> None:
    found = rates(
        warmup_multistep,
        12,
        steps_per_epoch=4,
        warmup_steps=2,
        warmup_factor=0.1,
        milestones=[1.5, 2],
        gamma=0.1,
    )
    assert found == pytest.approx([0.1, 0.55, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])


def test_warmup_and_cosine() -> None:
    found = rates(warmup_cosine, 7, steps_per_epoch=4, warmup_steps=2, warmup_factor=0.0, final_factor=0.1)
    assert found[:3] == pytest.approx([0, 0.5, 1])
    assert found[3:] == sorted(found[3:], reverse=True)
    assert rates(warmup_cosine, 5, steps_per_epoch=4, warmup_steps=0)[0] == 1


def test_images_are_converted_to_the_same_numbers_in_one_pass() -> None:
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    (converted,) = to_unit_range([image])
    assert torch.equal(converted, image.float() / 255)
    assert converted.dtype == torch.float32
    assert torch.equal(image[0].flatten(), torch.arange(256, dtype=torch.uint8))  # untouched
