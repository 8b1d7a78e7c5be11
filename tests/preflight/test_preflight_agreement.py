"""What files and settings say: each check finds the fault it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from defeat.config import build, compose_config, conf_dir, to_plain
from defeat.data.scenes import CLASSES
from defeat.detectors import Detector, FrozenTeacher, WeightFile
from defeat.errors import WeightsError
from defeat.preflight.agreement import (
    check_levels,
    check_normalisation,
    check_padding,
    check_resize,
    check_weights,
)
from defeat.training.module import DetectionModule
from defeat.training.run import Run
from tests.helpers.built_runs import SHIPPED, built_run, severe, words


def test_a_healthy_pair_agrees(healthy: Run) -> None:
    assert healthy.distillation is not None
    assert check_weights(healthy.student, healthy.teacher).problems == []
    for check in (check_normalisation, check_resize, check_padding, check_levels):
        assert check(healthy, healthy.distillation).result == "ok", check


def test_a_teacher_file_of_a_deeper_network_is_found(tmp_path: Path, pictures: Path) -> None:
    # Its first layers fill the shallower network whole: the loader has nothing to refuse.
    found = check_weights(*_detectors(tmp_path, pictures, "teacher.model.backbone=resnet10"))
    assert "keys that the teacher's backbone lacks" in severe(found)
    assert "of a deeper network" in severe(found)


def test_a_teacher_file_of_a_shallower_network_is_refused_at_loading(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing .* These weights are of another model"):
        _detectors(tmp_path, pictures, "teacher.model.backbone=resnet34")


def test_keys_of_a_file_outside_of_the_backbone_are_a_warning(tmp_path: Path, pictures: Path) -> None:
    torch.save(load_file(SHIPPED) | {"roi_heads.mask_head.weight": torch.ones(1)}, tmp_path / "mask.pth")
    found = check_weights(*_detectors(tmp_path, pictures, f"teacher.weights={tmp_path}/mask.pth"))
    assert found.result == "warning"
    assert "1 keys that the teacher lacks (roi_heads.mask_head.weight)" in found.problems[0].cause


def test_variances_that_float16_could_not_hold_are_a_warning(tmp_path: Path, pictures: Path) -> None:
    tensors = load_file(SHIPPED)
    tensors["backbone.body.bn1.running_var"][3] = 1e5
    torch.save(tensors, tmp_path / "half.pth")
    assert tensors["backbone.body.bn1.running_var"][3] == float("inf")
    found = check_weights(*_detectors(tmp_path, pictures, f"teacher.weights={tmp_path}/half.pth"))
    assert found.result == "warning"
    assert "the teacher has infinite values in backbone.body.bn1.running_var" in found.problems[0].cause


def test_frozen_norms_with_random_weights_are_a_warning(tmp_path: Path, pictures: Path) -> None:
    found = check_weights(*_detectors(tmp_path, pictures, "student.model.norm=frozen"))
    assert [problem.severe for problem in found.problems] == [False]
    assert "set student.backbone_weights" in found.problems[0].remedy


def test_backbone_weights_are_counted(tmp_path: Path, pictures: Path) -> None:
    body = {k.removeprefix("backbone.body."): v for k, v in load_file(SHIPPED).items() if ".body." in k}
    torch.save(body | {"fc.weight": torch.ones(1)}, tmp_path / "body.pth")
    more = ["student.model.backbone=resnet18", "student.model.norm=frozen"]
    more.append(f"student.backbone_weights={tmp_path}/body.pth")
    found = check_weights(*_detectors(tmp_path, pictures, *more))
    assert found.problems == []
    (problem,) = check_weights(*_detectors(tmp_path, pictures, *more, "student.model.heads=v2")).problems
    assert "student.model.norm=batch" in problem.remedy  # of heads that no file fills
    counted = [key for key in body if not key.endswith("num_batches_tracked")]
    assert f"student {len(counted)} keys of the backbone from" in found.summary


def _detectors(tmp_path: Path, pictures: Path, *more: str) -> tuple[Detector, Detector | None]:
    """What a run of the scenes would build, without its data."""
    config = compose_config("train", ["+experiment=scenes", *words(tmp_path / "run", pictures, *more)])
    student: Detector = build(config.student, classes=list(CLASSES))
    return student, build(config.teacher, classes=list(CLASSES), teacher=True)


def test_another_normalisation_in_the_teachers_training_is_found_though_both_are_configured_alike(
    healthy: Run,
) -> None:
    spoilt = _trained(healthy, {"image_std": [1.0, 1.0, 1.0]})
    assert spoilt.distillation is not None
    assert "image_std [0.229, 0.224, 0.225], and the teacher was trained with [1.0" in severe(
        check_normalisation(spoilt, spoilt.distillation)
    )


def _trained(healthy: Run, model: dict[str, Any]) -> Run:
    """As if the teacher's file were a checkpoint of a run with these settings."""
    assert healthy.teacher is not None
    file = WeightFile({}, None, {"student": {"model": model}})
    return healthy._replace(teacher=healthy.teacher._replace(file=file))


def test_another_resize_is_found_with_the_keys_that_mend_it(tmp_path: Path, pictures: Path) -> None:
    wrong = built_run(tmp_path, pictures, "student.model.min_size=96", "student.model.max_size=96")
    assert wrong.distillation is not None
    text = severe(check_resize(wrong, wrong.distillation))
    assert "have min_size 96, max_size 96, but the teacher is configured with min_size 128" in text
    assert "set student.model.min_size=128 student.model.max_size=128" in text


def test_the_size_that_the_teacher_was_trained_at_counts_before_its_configuration(
    healthy: Run, tmp_path: Path, pictures: Path
) -> None:
    trained = _trained(healthy, {"min_size": [96, 160], "max_size": 200})
    assert trained.distillation is not None
    text = severe(check_resize(trained, trained.distillation))
    assert "the teacher was trained at min_size 160, max_size 200" in text
    # A distilled run never uses the teacher's own transform.
    unused = built_run(tmp_path, pictures, "teacher.model.min_size=800", "teacher.model.max_size=1333")
    unused = _trained(unused, {"min_size": 128, "max_size": 128})
    assert unused.distillation is not None
    assert check_resize(unused, unused.distillation).result == "ok"


def test_a_fixed_size_is_another_size(built: Run) -> None:
    assert built.distillation is not None
    built.module.student.transform.fixed_size = (128, 128)
    assert "exactly 128 x 128" in severe(check_resize(built, built.distillation))


def test_another_padding_is_found(built: Run) -> None:
    assert built.distillation is not None
    built.module.student.transform.size_divisible = 64
    assert "multiples of 64 pixels and the teacher to 32" in severe(check_padding(built, built.distillation))


FEWER = ["student.model.returned_layers=[2,3]", "student.model.anchor_sizes=[[24],[48],[96]]"]


def test_a_wrong_number_of_levels_is_found(tmp_path: Path, pictures: Path) -> None:
    wrong = built_run(tmp_path, pictures, *FEWER)
    assert wrong.distillation is not None
    found = check_levels(wrong, wrong.distillation)
    # of the neck alone: the term on the stages names its strides
    assert "neck compares the neck of strides 8 16 32 alone" in severe(found)
    assert "the student has 8 16 32 and the teacher 4 8 16 32" in severe(found)
    assert "distiller.terms.neck.strides=[8,16,32]" in severe(found)


def test_levels_that_the_configuration_names_are_wanted(tmp_path: Path, pictures: Path) -> None:
    named = built_run(tmp_path, pictures, *FEWER, "distiller.terms.neck.strides=[8,16,32]")
    assert named.distillation is not None
    assert check_levels(named, named.distillation).problems == []


# -- all experiments ------------------------------------------------------------------------------------


def _small(node: DictConfig, classes: list[str]) -> Detector:
    """A configured detector with the strides and sizes it has, and as few layers and channels as may be."""
    OmegaConf.set_struct(node, False)
    resnet = node.model.backbone.startswith("resnet")
    node.model.update(fpn_channels=64, **({"backbone": "resnet18", "stride_in_1x1": False} if resnet else {}))
    if "box_head_channels" in node.model:
        node.model.box_head_channels = 8
    detector: Detector = build(node, classes=classes, weights=None, backbone_weights=None)
    return detector


KINDS = (
    *("scenes", "bccd", "frcnn_r152_r50", "frcnn_r152_r50 distiller=cwd"),
    *("retinanet_r152_r50", "fcos_r152_r50", "frcnn_r152_retinanet_r50", "retinanet_r152_frcnn_r50"),
)
"""An experiment of each pair of families and of each kind of term; the slow test takes all."""


@pytest.mark.parametrize("experiment", KINDS)
def test_an_experiment_of_each_kind_agrees_with_itself(experiment: str, healthy: Run) -> None:
    _agrees(experiment, healthy)


@pytest.mark.slow
def test_every_experiment_agrees_with_itself(healthy: Run) -> None:
    for path in sorted((conf_dir() / "experiment").glob("*.yaml")):
        if "/distiller:" in path.read_text():
            _agrees(path.stem, healthy)


def _agrees(experiment: str, healthy: Run) -> None:
    config = compose_config("train", [*f"+experiment={experiment}".split(), "run_dir=x", "data.root=x"])
    with torch.device("meta"):
        student, teacher = (_small(node, ["a", "b"]) for node in (config.student, config.teacher))
        distiller = build(config.distiller)(student.model, teacher.model)
    module = DetectionModule(
        student.model, ["a", "b"], teacher=FrozenTeacher(teacher.model), distiller=distiller
    )
    run = healthy._replace(module=module, student=student, teacher=teacher, config=to_plain(config))
    assert run.distillation is not None
    for check in (check_normalisation, check_resize, check_padding):
        assert check(run, run.distillation).result == "ok"
    levels = check_levels(run, run.distillation)
    crossed = type(student.model) is not type(teacher.model)
    assert levels.result == ("warning" if crossed else "ok")
