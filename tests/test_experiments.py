"""Every experiment says what it is, composes to that, and trains and evaluates: at a tiny size, on a CPU.

The tables below are written from the paper and from the reference's recipe, not from the files.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from defeat.config import build, compose_config, conf_dir
from defeat.data.scenes import CLASSES
from defeat.training.run import train

FOLDER = conf_dir() / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))

COCO_SOLO = {
    "frcnn_r152": ("faster_rcnn", "resnet152"),
    "frcnn_r50": ("faster_rcnn", "resnet50"),
    "retinanet_r152": ("retinanet", "resnet152"),
    "retinanet_r50": ("retinanet", "resnet50"),
    "fcos_r152": ("fcos", "resnet152"),
    "fcos_r50": ("fcos", "resnet50"),
}
VOC_SOLO = {
    "voc_frcnn_r152": ("faster_rcnn", "resnet152"),
    "voc_frcnn_r101": ("faster_rcnn", "resnet101"),
    "voc_frcnn_r50": ("faster_rcnn", "resnet50"),
}
OTHER_SOLO = {
    "scenes_teacher": ("faster_rcnn", "resnet18"),
    "scenes_plain": ("faster_rcnn", "resnet10"),
    "bccd_teacher": ("faster_rcnn", "resnet50"),
    "bccd_plain": ("faster_rcnn", "mobilenet_v2"),
}
SOLO = COCO_SOLO | VOC_SOLO | OTHER_SOLO
"""Detectors trained alone: family and backbone."""

PAIRS = {
    "frcnn_r152_r50": ("frcnn_r152", "frcnn_r50"),
    "retinanet_r152_r50": ("retinanet_r152", "retinanet_r50"),
    "voc_frcnn_r152_r50": ("voc_frcnn_r152", "voc_frcnn_r50"),
    "voc_frcnn_r101_r50": ("voc_frcnn_r101", "voc_frcnn_r50"),
    "retinanet_r152_frcnn_r50": ("retinanet_r152", "frcnn_r50"),
    "frcnn_r152_retinanet_r50": ("frcnn_r152", "retinanet_r50"),
    "fcos_r152_r50": ("fcos_r152", "fcos_r50"),
    "scenes": ("scenes_teacher", "scenes_plain"),
    "bccd": ("bccd_teacher", "bccd_plain"),
}
"""Teacher and student alone of each pair."""

NECK = {
    "all_neck": (20, 0, "full_mask"),
    "fgfi": (4, 0, "fine_grained_mask"),
    "tadf": (4, 0, "gaussian_mask"),
    "neck_object": (4, 0, "object_mask"),
    "neck_background": (0, 16, "object_mask"),
    "neck_random": (4, 16, "random_mask"),
    "neck_gaussian": (4, 16, "gaussian_mask"),
    "neck_fine_grained": (4, 16, "fine_grained_mask"),
}
"""Weights of object and background regions and the regions, where a row departs from 4, 16 and the boxes."""

HEAD = {
    "": (2, 2, "teacher", False),
    "neck_cls": (2, 2, "teacher", False),
    "neck_all_cls": (2, 2, "teacher", True),
    "tadf": (2, 0, "teacher", False),
    "neck_cls_positive": (2, 0, "teacher", False),
    "neck_cls_negative": (0, 2, "teacher", False),
    "neck_cls_student": (2, 2, "student", False),
}
"""Weights of object and background proposals, whose proposals, one mean over all; other rows have no head."""

WHOLE_MAPS = {"pkd": "pearson_loss", "cwd": "channel_loss"}

WHOLE = ["", "neck", *NECK]
TWO_STAGE = sorted({*WHOLE, *HEAD})
SUFFIXES = {
    "frcnn_r152_r50": [*TWO_STAGE, *WHOLE_MAPS],
    "retinanet_r152_r50": [*WHOLE, "head"],
    "voc_frcnn_r152_r50": TWO_STAGE,
    "voc_frcnn_r101_r50": TWO_STAGE,
    "scenes": ["", "neck", "neck_cls", "neck_object", "neck_background", "all_neck", "fgfi", "tadf"],
}
"""The rows of each pair, by what follows its name; other pairs have one row."""

DISTILLED = {
    f"{pair}_{suffix}".rstrip("_"): (pair, suffix) for pair in PAIRS for suffix in SUFFIXES.get(pair, [""])
}

PAPER: dict[str, list[float]] = {
    # AP, small, medium, large on COCO val
    "frcnn_r152": [41.3],
    "frcnn_r50": [37.4, 21.8, 41.0, 47.8],
    "frcnn_r152_r50_fgfi": [39.9, 22.9, 43.6, 52.8],
    "frcnn_r152_r50_tadf": [40.1, 23.0, 43.6, 53.0],
    "frcnn_r152_r50_all_neck": [40.1],
    "frcnn_r152_r50_neck": [40.4, 23.4, 44.4, 53.1],
    "frcnn_r152_r50_neck_all_cls": [40.5],
    "frcnn_r152_r50_neck_cls": [40.8, 23.5, 44.8, 53.3],
    "frcnn_r152_r50": [40.9, 23.6, 44.8, 53.5],
    "retinanet_r152": [40.5],
    "retinanet_r50": [36.5, 20.9, 40.2, 47.0],
    "retinanet_r152_r50_fgfi": [38.9, 21.9, 42.5, 52.2],
    "retinanet_r152_r50_all_neck": [39.1],
    "retinanet_r152_r50_neck": [39.5],
    "retinanet_r152_r50": [39.7, 23.4, 43.6, 52.9],
    # AP50 on VOC 07 test: the paper's, then the reference code's
    "voc_frcnn_r101": [82.27],
    "voc_frcnn_r50": [80.53, 80.52],
    "voc_frcnn_r101_r50_fgfi": [81.04, 81.17],
    "voc_frcnn_r101_r50": [82.28, 82.04],
}

EXTENSIONS = {
    "frcnn_r152_r50_pkd",
    "frcnn_r152_r50_cwd",
    "retinanet_r152_r50_head",
    "retinanet_r152_frcnn_r50",
    "frcnn_r152_retinanet_r50",
    "fcos_r152",
    "fcos_r50",
    "fcos_r152_r50",
}


@cache
def composed(name: str) -> DictConfig:
    """As the user's command composes it, but for the values that only the user knows. Not to be changed."""
    return compose_config("train", [f"+experiment={name}", "run_dir=runs/x"])


@cache
def table() -> ModuleType:
    """tools/experiments_table.py, which is no part of the package."""
    path = Path(__file__).resolve().parents[1] / "tools" / "experiments_table.py"
    spec = importlib.util.spec_from_file_location("experiments_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def target(node: DictConfig) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def read_words(name: str) -> dict[str, str]:
    """Keys and values of an experiment's command; what stands in <> for the user's values stays as it is."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# defeat-train +experiment={name}")
    command = lines[1].removeprefix("# ")
    for line in lines[2:]:
        if not command.endswith("\\"):
            break
        command = f"{command.removesuffix(chr(92))} {line.removeprefix('#').strip()}"
    words = re.findall(r"(\+?[\w.]+)=(<[^>]*>|\S+)", command)
    rebuilt = ["defeat-train", *(f"{key}={value}" for key, value in words)]
    assert " ".join(command.split()) == " ".join(rebuilt), "something that is no KEY=VALUE"
    assert len(dict(words)) == len(words)
    return dict(words)


def read_paper(name: str) -> list[str]:
    return re.findall(r"^# Paper: (.+)\.$", (FOLDER / f"{name}.yaml").read_text(), re.MULTILINE)


def test_there_is_one_file_for_each_row() -> None:
    assert set(EXPERIMENTS) == {*SOLO, *DISTILLED}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_names_itself_and_its_command_says_what_only_the_user_knows(name: str) -> None:
    config, words = composed(name).copy(), read_words(name)
    assert config.name == name
    assert words.pop("+experiment") == name
    wanted = OmegaConf.missing_keys(config)
    assert wanted <= {"data.root"}
    if config.teacher is not None and config.teacher.weights is None:
        wanted.add("teacher.weights")
        assert words["teacher.weights"] == f"<best.ckpt of +experiment={PAIRS[DISTILLED[name][0]][0]}>"
    if config.student.backbone_weights is not None:
        wanted.add("student.backbone_weights" if "student.backbone_weights" in words else "download")
    assert set(words) == wanted
    assert words.get("download", "true") == "true"
    for key, value in words.items():
        OmegaConf.update(config, key, value, force_add=False)
    assert not OmegaConf.missing_keys(config)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_figures_are_the_papers(name: str) -> None:
    ours = name.startswith(("scenes", "bccd"))
    lines = read_paper(name)
    assert len(lines) == (0 if ours else 1), "one line for the paper"
    if ours:
        return
    (line,) = lines
    if name in EXTENSIONS:
        assert line == "not in it"
        return
    assert [float(x) for x in re.findall(r"\d+\.\d+", line)] == PAPER.get(name, [])
    coco = re.fullmatch(r"AP [\d.]+( \(small [\d.]+, medium [\d.]+, large [\d.]+\))?", line)
    voc = name.startswith("voc_") and re.fullmatch(
        r"(AP50 [\d.]+; reference code|no figure; reference code AP50) [\d.]+( to [\d.]+|, [a-z ]+)?", line
    )
    assert coco or voc if name in PAPER else line in ("no figure", "no figure at hand")
    assert not (name.startswith("voc_") and coco)


@pytest.mark.parametrize("name", SOLO)
def test_a_detector_alone_is_the_one_it_is_called_after(name: str) -> None:
    config = composed(name)
    assert (target(config.student.model), config.student.model.backbone) == SOLO[name]
    assert config.teacher is None
    assert config.distiller is None


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_row_differs_from_the_student_alone_by_teacher_and_distiller(name: str) -> None:
    teacher, baseline = PAIRS[DISTILLED[name][0]]
    config, alone = composed(name), composed(baseline)
    assert set(config) == set(alone)
    # Compared as they are written: interpolations and missing values alike.
    a, b = (OmegaConf.to_container(each) for each in (config, alone))
    for key in config:
        if key not in ("name", "teacher", "distiller"):
            assert a[key] == b[key], f"{name} changes {key}"
    assert config.teacher.model == composed(teacher).student.model, "the command's teacher would not fit"


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_row_has_the_terms_that_it_is_called_after(name: str) -> None:
    pair, suffix = DISTILLED[name]
    terms = {key: term for key, term in composed(name).distiller.terms.items() if term is not None}
    if suffix in WHOLE_MAPS:
        ((only, term),) = terms.items()
        assert (only, target(term), target(term.loss)) == (suffix, "WholeMapTerm", WHOLE_MAPS[suffix])
        assert term.weight > 0
        return
    if pair in ("retinanet_r152_frcnn_r50", "frcnn_r152_retinanet_r50"):
        suffix = "neck"

    neck = terms.pop("neck")
    assert target(neck) == "FeatureTerm"
    share = 0.75 if pair.startswith("voc_") else 1  # 3 and 12
    object_weight, background_weight, mask = NECK.get(suffix, (4, 16, "object_mask"))
    assert (neck.object_weight, neck.background_weight) == (share * object_weight, share * background_weight)
    assert (target(neck.mask), neck.maps, neck.strides) == (mask, "neck", None)

    two_stage = target(composed(name).student.model) == "faster_rcnn"
    if suffix == "head":
        anchors = terms.pop("head")
        assert target(anchors) == "AnchorTerm"
        assert (anchors.object_weight, anchors.background_weight) == (1, 1)
    elif suffix in HEAD and two_stage:
        head = terms.pop("head")
        assert target(head) == "HeadTerm"
        assert (head.object_weight, head.background_weight, head.proposals, head.pooled) == HEAD[suffix]
        assert (head.object_temperature, head.background_temperature) == (1, 1)

    if suffix in ("", "head"):
        backbone = terms.pop("backbone")
        assert (target(backbone), backbone.maps) == ("FeatureTerm", "stages")
        assert backbone.strides == ([8, 16] if pair == "scenes" else [16, 32])
        assert (backbone.object_weight, backbone.background_weight) == (1, 1)
        assert (target(backbone.mask), target(backbone.adapter)) == ("shared_mask", "conv3x3_relu")
    assert not terms


@pytest.mark.parametrize("name", COCO_SOLO)
def test_the_recipe_on_coco(name: str) -> None:
    config = composed(name)
    assert target(config.data.train) == "read_coco"
    assert (config.data.batch_size, config.data.repeat, config.trainer.max_epochs) == (16, 1, 12)
    assert config.optim.optimizer.lr == (0.02 if name.startswith("frcnn") else 0.01)
    assert (config.optim.rate.milestones, config.optim.rate.warmup_steps) == ([8, 11], 500)
    assert config.trainer.gradient_clip_val is None
    assert (config.student.model.min_size, config.student.model.max_size) == (800, 1333)


@pytest.mark.parametrize("name", VOC_SOLO)
def test_the_recipe_on_voc(name: str) -> None:
    config = composed(name)
    assert (config.data.train.roots, config.data.train.image_set) == (["VOC2007", "VOC2012"], "trainval")
    assert (config.data.val.roots, config.data.val.image_set) == ("VOC2007", "test")
    assert config.data.batch_size == 16
    assert config.data.repeat * config.trainer.max_epochs == 12
    assert [config.data.repeat * epoch for epoch in config.optim.rate.milestones] == [9]
    assert (config.optim.optimizer.lr, config.optim.rate.warmup_steps) == (0.01, 200)
    assert config.trainer.gradient_clip_val == 35
    model = config.student.model
    assert (model.min_size, model.max_size, model.trainable_layers, model.norm) == (600, 1000, 3, "frozen")


def test_the_table_in_docs_is_what_the_files_say() -> None:
    assert table().TARGET.read_text(encoding="utf-8") == table().render(composed), (
        "run make experiments-table"
    )


def test_the_table_lists_every_experiment_with_its_figure() -> None:
    text = table().render(composed)
    lines = {match[1]: line for line in text.splitlines() if (match := re.match(r"\| \[`(\w+)`\]", line))}
    assert set(lines) == set(EXPERIMENTS)
    for name, line in lines.items():
        figure = line.rpartition(" | ")[2].removesuffix(" |")
        assert [float(x) for x in re.findall(r"\d+\.\d+", figure)] == PAPER.get(name, [])
        assert ("*extension*" in figure) == (name in EXTENSIONS)


FAST = {
    "faster_rcnn": {
        "rpn_pre_nms_top_n_train": 50,
        "rpn_pre_nms_top_n_test": 20,
        "rpn_post_nms_top_n_train": 50,
        "rpn_post_nms_top_n_test": 20,
        "rpn_batch_size_per_image": 32,
        "box_head_channels": 16,
        "box_batch_size_per_image": 16,
        "box_detections_per_img": 10,
    },
    "retinanet": {"topk_candidates": 20, "detections_per_img": 10},
    "fcos": {"topk_candidates": 20, "detections_per_img": 10},
}


def shrink(detector: DictConfig, fpn_channels: int) -> None:
    """One BasicBlock a stage, a narrow pyramid and few proposals, on pictures of 64 pixels."""
    family = target(detector.model)
    if family == "fcos":
        fpn_channels = 64  # the fewest that its head takes
    sizes = {"backbone": "resnet10", "fpn_channels": fpn_channels, "min_size": 64, "max_size": 64}
    for key, value in (sizes | FAST[family]).items():
        detector.model[key] = value
    detector.weights = detector.backbone_weights = None


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Callable[[DictConfig], str]:
    """Weights for a tiny teacher of any kind, each made once."""
    folder = tmp_path_factory.mktemp("teachers")
    made: dict[str, str] = {}

    def weights(node: DictConfig) -> str:
        key = json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True)
        if key not in made:
            model = build(node, classes=list(CLASSES)).model
            for part, module in model.named_modules():
                if part.endswith(("cls_logits", "cls_score")):
                    torch.nn.init.normal_(module.bias)  # untrained ones all say the same
            path = folder / f"{len(made)}.pth"
            torch.save(model.state_dict(), path)
            made[key] = str(path)
        return made[key]

    return weights


def parts_of(distiller: DictConfig | None) -> set[str]:
    """The losses that a distiller has to log."""
    found = set()
    for name, term in distiller.terms.items() if distiller is not None else ():
        weights = {str(key): value for key, value in (term or {}).items() if str(key).endswith("weight")}
        for key, value in weights.items():
            if value > 0:
                found.add(f"train/{name}_{key.removesuffix('weight')}".strip("_"))
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_trains_a_step_and_evaluates(
    name: str, tmp_path: Path, scenes: Path, tiny_teacher: Callable[[DictConfig], str]
) -> None:
    """Data and detectors at a tiny size; optimiser, heads and losses as they are."""
    config: Any = composed(name).copy()
    config.run_dir = str(tmp_path)
    shrink(config.student, 8)
    if config.teacher is not None:
        shrink(config.teacher, 16)
        config.teacher.weights = tiny_teacher(config.teacher)
    splits = {"train": {"images": 4, "size": 64}, "val": {"images": 2, "size": 64}}
    generated = {"root": str(scenes / "experiments"), "batch_size": 2, "val_batch_size": 2}
    config.data = OmegaConf.merge(tiny_data(), generated, splits)
    config.trainer.update(
        accelerator="cpu",
        max_steps=1,
        check_val_every_n_epoch=None,
        val_check_interval=1,
        log_every_n_steps=1,
    )
    OmegaConf.update(config, "trainer.enable_progress_bar", False, force_add=True)
    config.logger = config.callbacks.progress = config.callbacks.last = None
    config.callbacks.checkpoint.save_top_k = 0
    if "measure" in config:
        config.measure = None

    outcome = train(config)

    assert outcome.steps == 1
    assert 0 <= outcome.metrics["val/AP"] <= 1
    losses = {key: value for key, value in outcome.metrics.items() if key.startswith("train/")}
    assert all(math.isfinite(value) for value in losses.values()), losses
    expected = parts_of(config.distiller)
    assert bool(expected) == (name in DISTILLED)
    own = {f"train/{key}" for key in OWN_LOSSES[target(config.student.model)]}
    assert set(losses) - {"train/images_per_s"} == expected | own | {"train/loss", "train/loss_detection"}
    assert all(losses[key] > 0 for key in expected), losses
    assert losses["train/loss"] == pytest.approx(sum(losses[key] for key in expected | own), rel=1e-5)


OWN_LOSSES = {
    "faster_rcnn": ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
    "retinanet": ("classification", "bbox_regression"),
    "fcos": ("classification", "bbox_regression", "bbox_ctrness"),
}


@cache
def tiny_data() -> DictConfig:
    return compose_config("train", ["data=scenes", "run_dir=runs/x"]).data
