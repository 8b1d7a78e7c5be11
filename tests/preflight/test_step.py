"""Real steps: each fault of losses, gradients, optimiser and teacher is found by the check it is for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defeat.detectors import FrozenTeacher
from defeat.distill import Grids
from defeat.preflight.data import draw
from defeat.preflight.finding import Finding
from defeat.preflight.losses import check_losses
from defeat.preflight.parameters import check_frozen, check_gradients, check_optimizer
from defeat.preflight.step import Steps, take_steps
from defeat.training.module import DetectionModule
from defeat.training.run import Run
from defeat.types import Batch
from tests.helpers.built_runs import built_run, severe
from tests.helpers.tiny import tiny, tiny_teacher


def tiny_run(run_dir: Path, scenes: Path, teacher: Path, *more: str) -> Run:
    """A distilled run of tiny detectors: the faults below are found whatever the teacher knows."""
    return built_run(run_dir, scenes, *tiny(run_dir, scenes, *tiny_teacher(teacher), *more))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher: Path) -> Run:
    """Shared: change copies alone."""
    return tiny_run(tmp_path_factory.mktemp("healthy"), scenes, teacher)


def walk(run: Run, steps: int = 1) -> tuple[Steps, list[Batch]]:
    drawn = draw(run, 1)
    return take_steps(run, drawn.batches, steps, lambda: False), drawn.batches


def losses(run: Run, batches: list[Batch] | None = None, factor: float = 100) -> Finding:
    """The finding on losses after one real step."""
    drawn = batches or draw(run, 1).batches
    steps = take_steps(run, drawn, 1, lambda: False)
    return check_losses(run, run.distillation, steps, drawn, level_factor=factor)


def state(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.module.state_dict().items()}


def test_a_healthy_run_has_nothing_wrong_and_is_left_as_it_was(healthy: Run) -> None:
    before, modes = state(healthy), [module.training for module in healthy.module.modules()]
    steps, batches = walk(healthy, 2)
    assert len(steps.seconds) == 2
    for found in (
        check_frozen(steps),
        check_gradients(steps, half=False),
        check_optimizer(steps),
        check_losses(healthy, healthy.distillation, steps, batches, level_factor=100),
    ):
        assert (found.result, list(found.problems)) == ("ok", []), found.check
    assert set(steps.losses) >= {"loss_classifier", "neck_object", "head_background", "backbone_object"}
    assert steps.peak > 2**26
    assert all(torch.equal(value, before[name]) for name, value in healthy.module.state_dict().items())
    assert [module.training for module in healthy.module.modules()] == modes
    assert all(parameter.grad is None for parameter in healthy.module.parameters())


def test_the_time_ends_the_steps_but_one_is_taken(healthy: Run) -> None:
    drawn = draw(healthy, 1)
    assert len(take_steps(healthy, drawn.batches, 3, lambda: True).seconds) == 1


# -- the teacher ------------------------------------------------------------------------------------------


def test_a_teacher_in_training_mode_is_found_and_put_back(
    built: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert built.distillation is not None
    monkeypatch.setattr(FrozenTeacher, "train", nn.Module.train)
    before = state(built)
    found = check_frozen(walk(built)[0])
    assert found.result == "failed"
    causes = [problem.cause for problem in found.problems]
    assert "modules of the teacher train with the student: all of it, transform" in causes[0]
    assert not any(module.training for module in built.distillation.frozen_teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in built.module.state_dict().items())


def test_a_teacher_whose_tensors_move_is_found_and_put_back(built: Run) -> None:
    def drift(module: Any, args: Any, output: Tensor) -> None:
        module.bias.data.add_(1)

    assert built.distillation is not None
    conv = built.distillation.frozen_teacher.detector.backbone.body.conv1
    conv.register_forward_hook(drift)
    before = conv.bias.clone()
    assert "1 tensors of the teacher changed" in severe(check_frozen(walk(built)[0]))
    assert torch.equal(conv.bias, before)


def test_a_teacher_that_learns_is_found(built: Run) -> None:
    assert built.distillation is not None
    built.distillation.frozen_teacher.detector.backbone.fpn.requires_grad_(True)
    found = check_frozen(walk(built)[0])
    assert "parameters of the teacher require a gradient: backbone.fpn.inner_blocks.0.0.weight" in severe(
        found
    )


# -- gradients and optimiser ------------------------------------------------------------------------------


def test_a_parameter_that_no_loss_reaches_is_found(built: Run) -> None:
    built.module.student.spare = nn.Linear(2, 2)
    text = severe(check_gradients(walk(built)[0], half=False))
    assert "2 parameters get no gradient: student.spare.weight, student.spare.bias" in text
    assert "DDP would stop at it" in text


def test_a_gradient_that_is_not_finite_is_found_and_forgiven_in_half_precision(built: Run) -> None:
    def explode(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.inf)

    built.module.student.rpn.head.cls_logits.register_forward_hook(explode)
    steps, _ = walk(built)
    text = severe(check_gradients(steps, half=False))
    assert "parameters get a gradient that is not finite: student.backbone.body.conv1.weight" in text
    assert check_gradients(steps, half=True).result == "warning"


def test_a_dead_layer_is_a_warning(built: Run) -> None:
    with torch.no_grad():
        built.module.student.roi_heads.box_head.fc7.bias.fill_(-1e3)
    found = check_gradients(walk(built)[0], half=False)
    assert found.result == "warning"
    assert "get a gradient of 0: student.roi_heads.box_head.fc6.weight" in found.problems[0].cause


def test_adapters_left_out_of_the_optimiser_are_found(built: Run) -> None:
    def forgetful(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(parameters)[: len(list(built.module.student.parameters()))], lr=0.1)

    built.module._optimizer = forgetful
    text = severe(check_optimizer(walk(built)[0]))
    assert "12 of 68 parameters are not in the optimiser: distiller.terms.neck" in text


def test_an_optimiser_that_is_asked_for_the_student_alone_is_found(
    built: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The module itself forgets them.
    monkeypatch.setattr(
        DetectionModule,
        "build_optimizer",
        lambda self: self._optimizer(p for p in self.student.parameters() if p.requires_grad),
    )
    assert "12 of 68 parameters" in severe(check_optimizer(walk(built)[0]))


# -- losses -----------------------------------------------------------------------------------------------


def test_a_term_whose_mask_is_empty_is_found(built: Run) -> None:
    def nothing(grids: Grids) -> list[Tensor]:
        return [torch.zeros(len(grids.boxes), *shape) for shape in grids.shapes]

    assert built.distillation is not None
    built.distillation.distiller.terms["neck"].mask = nothing
    text = severe(losses(built))
    assert "neck_object is 0 on 4 images with" in text
    assert "distiller.terms.neck.object_weight=0" in text


def test_a_term_on_frozen_stages_is_found(tmp_path: Path, scenes: Path, teacher: Path) -> None:
    frozen = tiny_run(tmp_path, scenes, teacher, "student.model.trainable_layers=0")
    found = losses(frozen)
    text = " ".join(problem.cause for problem in found.problems if problem.severe)
    assert "backbone_object has a gradient of nan at the student's stages: it teaches nothing" in text
    assert "neck_object" not in text


def test_a_loss_that_is_not_finite_is_found(built: Run) -> None:
    assert built.distillation is not None
    with torch.no_grad():
        built.distillation.frozen_teacher.detector.backbone.fpn.layer_blocks[1][0].bias.fill_(math.nan)
    text = severe(losses(built))
    assert text.startswith("neck_object, neck_background")
    assert "not finite in the first step" in text


def test_a_level_far_above_the_others_is_found(built: Run) -> None:
    assert built.distillation is not None
    with torch.no_grad():
        built.distillation.frozen_teacher.detector.backbone.fpn.layer_blocks[0][0].weight.mul_(1e3)
    found = losses(built)
    (text,) = [problem.cause + problem.remedy for problem in found.problems if "background" in problem.cause]
    assert found.result == "failed"
    assert "neck_background at stride 4 of the neck is" in text
    assert "distiller.terms.neck.strides" in text


def test_a_schedule_of_nothing_is_found(built: Run) -> None:
    assert built.distillation is not None
    built.distillation.distiller.schedule = lambda progress: 0.0
    assert "distiller.schedule is 0 from the start to the end" in severe(losses(built))


def test_images_without_objects_leave_a_loss_unjudged(healthy: Run) -> None:
    (batch,) = draw(healthy, 1).batches
    empty = [
        {**t, "boxes": t["boxes"][:0], "labels": t["labels"][:0], "ignore": t["ignore"][:0]}
        for t in batch.targets
    ]
    found = losses(healthy, [Batch(batch.images, empty)])  # type: ignore[arg-type]
    assert found.result == "warning"
    assert "neck_object cannot be judged, for the first 4 images have no objects" in found.problems[0].cause


def test_a_plain_run_has_its_own_losses_and_parameters_alone(tmp_path: Path, scenes: Path) -> None:
    plain = built_run(tmp_path, scenes, *tiny(tmp_path, scenes), experiment="scenes_plain")
    steps, batches = walk(plain)
    found = check_losses(plain, plain.distillation, steps, batches, level_factor=100)
    assert found.result == check_gradients(steps, half=False).result == "ok"
    assert found.summary.startswith("detection ")
    assert check_optimizer(steps).summary == "56 parameters, 0 of them the distiller's"
