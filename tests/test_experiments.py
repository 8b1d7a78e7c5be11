"""Every experiment's command composes to it, the paper's rows say what the paper says, and each kind trains.

The figures, weights and schedules below come from the paper and the reference's recipe, not from the files.
"""

from __future__ import annotations

import math
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from defeat.config import build, compose_config, conf_dir
from defeat.run.train import train
from tests.helpers.tools import load_tool

FOLDER = conf_dir() / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
ROOT = Path(__file__).resolve().parents[1]

COCO = {  # AP, small, medium, large on COCO val; weights of object and background by term
    "frcnn_r152": ([41.3], {}),
    "frcnn_r50": ([37.4, 21.8, 41.0, 47.8], {}),
    "frcnn_r152_r50_fgfi": ([39.9, 22.9, 43.6, 52.8], {"neck": (4, 0)}),
    "frcnn_r152_r50_tadf": ([40.1, 23.0, 43.6, 53.0], {"neck": (4, 0), "head": (2, 0)}),
    "frcnn_r152_r50_all_neck": ([40.1], {"neck": (20, 0)}),
    "frcnn_r152_r50_neck": ([40.4, 23.4, 44.4, 53.1], {"neck": (4, 16)}),
    "frcnn_r152_r50_neck_all_cls": ([40.5], {"neck": (4, 16), "head": (2, 2)}),
    "frcnn_r152_r50_neck_cls": ([40.8, 23.5, 44.8, 53.3], {"neck": (4, 16), "head": (2, 2)}),
    "frcnn_r152_r50": ([40.9, 23.6, 44.8, 53.5], {"neck": (4, 16), "head": (2, 2), "backbone": (1, 1)}),
    "retinanet_r152": ([40.5], {}),
    "retinanet_r50": ([36.5, 20.9, 40.2, 47.0], {}),
    "retinanet_r152_r50_fgfi": ([38.9, 21.9, 42.5, 52.2], {"neck": (4, 0)}),
    "retinanet_r152_r50_all_neck": ([39.1], {"neck": (20, 0)}),
    "retinanet_r152_r50_neck": ([39.5], {"neck": (4, 16)}),
    "retinanet_r152_r50": ([39.7, 23.4, 43.6, 52.9], {"neck": (4, 16), "backbone": (1, 1)}),
}
VOC = {  # AP50 on VOC 07 test: the paper's, then the reference code's
    "voc_frcnn_r152": ([], {}),
    "voc_frcnn_r101": ([82.27], {}),
    "voc_frcnn_r50": ([80.53, 80.52], {}),
    "voc_frcnn_r152_r50": ([], {"neck": (3, 12), "head": (2, 2), "backbone": (1, 1)}),
    "voc_frcnn_r101_r50_fgfi": ([81.04, 81.17], {"neck": (3, 0)}),
    "voc_frcnn_r101_r50": ([82.28, 82.04], {"neck": (3, 12), "head": (2, 2), "backbone": (1, 1)}),
}
MASKS = {"all_neck": "full_mask", "fgfi": "fine_grained_mask", "tadf": "gaussian_mask"}

KINDS = [
    *("frcnn_r50", "frcnn_r152_r50", "frcnn_r152_r50_tadf", "frcnn_r152_r50_neck_all_cls"),
    *("retinanet_r50", "retinanet_r152_r50", "retinanet_r152_r50_all_neck", "fcos_r152_r50"),
    *("retinanet_r152_frcnn_r50", "frcnn_r152_retinanet_r50", "voc_frcnn_r101_r50_fgfi", "scenes", "bccd"),
]
"""An experiment of each pair of families, data set and kind of loss."""
FAST = {"frcnn_r152_r50", "retinanet_r152_r50", "fcos_r152_r50", "frcnn_r152_retinanet_r50"}
"""Those that the fast suite trains; of all others it builds what they need."""


@cache
def composed(name: str) -> DictConfig:
    """The configuration that the command in a file's header gives. Not to be changed."""
    return compose_config("train", [*command(name)[1:], "run_dir=runs/x"])


def target(node: DictConfig) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def header(name: str) -> str:
    """The comment that a file starts with, without its comment signs and line breaks inside the command."""
    first, *lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first == "# @package _global_"
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("# ") for line in lines[:end]).replace("\\\n", "")


def command(name: str) -> list[str]:
    """The words of the command in a header, where something stands for what only the user knows."""
    return shlex.split(re.sub(r"<.*?>", "given", header(name).splitlines()[0]))


def weights(config: DictConfig) -> dict[str, tuple[float, float]]:
    terms = config.distiller.terms if config.distiller is not None else {}
    return {k: (t.object_weight, t.background_weight) for k, t in terms.items() if t is not None}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_command_in_its_header_composes_to_it_and_leaves_nothing_open(name: str) -> None:
    assert command(name)[:2] == ["defeat-train", f"+experiment={name}"]
    config = composed(name)
    assert config.name == name
    assert not OmegaConf.missing_keys(config)
    assert config.download or config.student.backbone_weights in (None, "given")
    teacher = re.search(r"teacher\.weights=<best\.ckpt of \+experiment=(\w+)>", header(name))
    if teacher:
        given = {key: value for key, value in config.teacher.model.items() if value is not None}
        assert given.items() <= dict(composed(teacher[1]).student.model).items(), "the teacher would not fit"
    else:
        assert config.teacher is None or config.teacher.weights


@pytest.mark.parametrize("name", [*COCO, *VOC])
def test_a_row_has_the_figures_and_the_weights_of_the_paper(name: str) -> None:
    config, (figures, pairs) = composed(name), (COCO | VOC)[name]
    (line,) = re.findall(r"^Paper: (.+)\.$", header(name), re.MULTILINE)
    assert [float(x) for x in re.findall(r"\d+\.\d+", line)] == figures
    assert weights(config) == pairs
    if not pairs:
        assert (config.teacher, config.distiller) == (None, None)
        return
    suffix = name.partition("_r50_")[2]
    assert target(config.distiller.terms.neck.mask) == MASKS.get(suffix, "object_mask")
    if "head" in pairs:
        head = config.distiller.terms.head
        assert (head.proposals, head.pooled) == ("teacher", suffix == "neck_all_cls")
    if "backbone" in pairs:
        assert config.distiller.terms.backbone.strides == [16, 32]


@pytest.mark.parametrize(("name", "rows"), [("coco", COCO), ("voc", VOC)])
def test_the_schedule_is_the_recipes(name: str, rows: dict[str, Any]) -> None:
    for config in map(composed, rows):
        model, repeat, schedule = config.student.model, config.data.repeat, config.optim.lr_schedule
        epochs = [repeat * epoch for epoch in (*schedule.milestones, config.trainer.max_epochs)]
        optimizer = config.optim.optimizer
        assert target(optimizer) == "SGD"
        assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-4)
        assert config.data.batch_size == 16
        assert (model.trainable_layers, model.norm) == (3, "frozen")
        got = (optimizer.lr, schedule.warmup_steps, config.trainer.gradient_clip_val)
        if name == "coco":
            assert got == (0.02 if config.name.startswith("frcnn") else 0.01, 500, None)
            assert (epochs, model.min_size, model.max_size) == ([8, 11, 12], 800, 1333)
        else:
            assert got == (0.01, 200, 35)
            assert (epochs, model.min_size, model.max_size) == ([9, 12], 600, 1000)


@pytest.mark.parametrize(
    ("distiller", "expected"),
    [("neck_object", (3, 0)), ("neck_background", (0, 12)), ("neck_random", (3, 12)), ("all_neck", (15, 0))],
)
def test_a_distiller_chosen_beside_a_row_has_the_weights_of_its_recipe(
    distiller: str, expected: tuple[float, float]
) -> None:
    words = ["+experiment=voc_frcnn_r101_r50", f"distiller={distiller}", "run_dir=runs/x"]
    assert weights(compose_config("train", words)) == {"neck": expected}


def test_the_page_in_docs_is_what_the_files_say() -> None:
    table = load_tool("experiments_table")
    page = table.TARGET.read_text(encoding="utf-8")
    assert page == table.render(composed), "run make experiments-table"
    rows = page.partition("\n## Distillers\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", rows, re.M)) == set(EXPERIMENTS)


@pytest.mark.parametrize("name", ["scenes", "bccd", "person", "person_r18"])
def test_the_rows_of_a_table_of_results_differ_in_nothing_but_the_method(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = load_tool("evidence")
    files = ["--data", "d", "--resnet50", "w", "--mobilenetv2", "m"]
    chosen = ["plain", "plain_long", "all_neck", "defeat"] if name != "scenes" else []
    some = ["--rows", *chosen] if chosen else []
    evidence.main([name, *files, "--seeds", "3", "--dry-run", "trainer=gpu", *some])
    words = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    configs = [compose_config("train", command) for command in words]
    rows = [config for config in configs if config.name != "teacher"]
    assert [config.name for config in rows] == (chosen or list(evidence.ROWS))
    for same in ("seed", "data", "optim", "student"):
        assert all(config[same] == rows[0][same] for config in rows), same
    assert {config.trainer.max_steps for config in rows if config.name != "plain_long"} == {400}
    distilled = [config for config in rows if config.name not in ("plain", "plain_long")]
    assert {config.distiller.balance for config in distilled} == {"gradient"}
    assert all(config.teacher == distilled[0].teacher for config in distilled)
    assert {(config.distiller.share, config.distiller.shares) for config in distilled} == {(1, None)}


@pytest.mark.parametrize(
    ("option", "name", "shares"),
    [
        (["--share", "3"], "fgfi_share3", {"neck": 3}),
        (
            ["--object-share", "3"],
            "defeat_objects3",
            {"neck_object": 3, "neck_background": 1, "head_object": 1},
        ),
        (["--tuned"], "all_neck_tuned", {"neck": 30}),
    ],
)
def test_rows_at_other_shares_have_names_of_their_own(
    option: list[str], name: str, shares: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    row = name.rpartition("_")[0]
    load_tool("evidence").main(
        ["scenes", *option, "--dry-run", "--rows", "plain", row, "--seeds", "0", "data.root=d"]
    )
    plain, config = (
        compose_config("train", shlex.split(line)[1:]) for line in capsys.readouterr().out.splitlines()
    )
    assert (plain.name, config.name, config.data.root) == ("plain", name, "d")
    wanted = {loss: (config.distiller.shares or {}).get(loss, config.distiller.share) for loss in shares}
    assert wanted == shares


def test_a_row_that_was_trained_with_other_words_is_not_reported_as_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a second setting in the same folder would get the figures of the first."""
    row = tmp_path / "scenes_400" / "seed0" / "defeat"
    row.mkdir(parents=True)
    (row / "ended").write_text("distiller=defeat optim.optimizer.lr=1")
    with pytest.raises(SystemExit):
        load_tool("evidence").main(["scenes", "--folder", str(tmp_path), "--seeds", "0", "--rows", "defeat"])
    assert "optim.optimizer.lr=1): name another --folder" in capsys.readouterr().err
    assert [path.name for path in row.iterdir()] == ["ended"], "nothing was trained"


FEW = {
    "rpn_pre_nms_top_n_train": 50,
    "rpn_pre_nms_top_n_test": 20,
    "rpn_post_nms_top_n_train": 50,
    "rpn_post_nms_top_n_test": 20,
    "rpn_batch_size_per_image": 32,
    "box_head_channels": 16,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
    "topk_candidates": 20,
    "detections_per_img": 10,
}


def shrink(detector: DictConfig, fpn_channels: int) -> None:
    """One BasicBlock a stage, a narrow pyramid and few proposals, on pictures of 64 pixels."""
    if target(detector.model) == "fcos":
        fpn_channels = 64  # the fewest that its head takes
    sizes = {"backbone": "resnet10", "fpn_channels": fpn_channels, "min_size": 64, "max_size": 64}
    known = {key: value for key, value in FEW.items() if key in detector.model}
    detector.model.update(sizes | known)
    detector.weights = detector.backbone_weights = None


def save_weights(teacher: DictConfig, classes: list[str], path: Path) -> str:
    """Weights of an untrained teacher whose classes have unlike scores."""
    model = build(teacher, classes=classes).model
    for part, module in model.named_modules():
        if part.endswith(("cls_logits", "cls_score")):
            torch.nn.init.normal_(module.bias)
    torch.save(model.state_dict(), path)
    return str(path)


def loss_names(distiller: DictConfig | None) -> set[str]:
    return {
        f"distill/{name}_{part}"
        for name, term in (distiller.terms.items() if distiller is not None else ())
        for part in ("object", "background")
        if term is not None and term[f"{part}_weight"] > 0
    }


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in FAST])
def test_its_detectors_and_its_distiller_can_be_built(name: str) -> None:
    config = composed(name)
    student = untrained(OmegaConf.to_yaml(config.student, resolve=True))
    if config.distiller is not None:
        teacher = untrained(OmegaConf.to_yaml(config.teacher, resolve=True))
        with torch.device("meta"):
            distiller = build(config.distiller)(student, teacher)
        assert set(distiller.terms) == set(weights(config))


@cache
def untrained(node: str) -> torch.nn.Module:
    """The detector of a configuration, without weights and numbers."""
    with torch.device("meta"):
        built = build(OmegaConf.create(node), classes=["a", "b"], weights=None, backbone_weights=None)
    model: torch.nn.Module = built.model
    return model


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_it_trains_a_step_and_evaluates(name: str, tmp_path: Path, scenes: Path) -> None:
    """Data and detectors at a tiny size; optimiser, heads and losses as they are."""
    from defeat.data.scenes import CLASSES

    config: Any = composed(name).copy()
    config.run_dir = str(tmp_path)
    shrink(config.student, 8)
    if config.teacher is not None:
        shrink(config.teacher, 16)
        config.teacher.weights = save_weights(config.teacher, list(CLASSES), tmp_path / "teacher.pth")
    config.data = composed("scenes").data.copy()
    splits = {split: {"images": 4, "size": 64} for split in ("train", "val")}
    few = {"root": str(scenes / "experiments"), "batch_size": 2, "val_batch_size": 2, **splits}
    config.data = OmegaConf.merge(config.data, few)
    config.trainer.update(accelerator="cpu", max_steps=1, check_val_every_n_epoch=None, val_check_interval=1)
    config.trainer.log_every_n_steps = 1
    OmegaConf.update(config, "trainer.enable_progress_bar", False, force_add=True)
    config.logger = config.callbacks.progress = config.callbacks.last = config.callbacks.measure = None
    config.callbacks.checkpoint.save_top_k = 0

    outcome = train(config)

    assert outcome.steps == 1
    assert 0 <= outcome.metrics["val/AP"] <= 1
    losses = {key: value for key, value in outcome.metrics.items() if key.startswith(("train/", "distill/"))}
    assert all(math.isfinite(value) for value in losses.values()), losses
    distilled = loss_names(config.distiller)
    assert bool(distilled) == (config.distiller is not None)
    assert all(losses[key] > 0 for key in distilled), losses
    total = losses["train/loss_detection"] + sum(losses[key] for key in distilled)
    assert losses["train/loss"] == pytest.approx(total, rel=1e-5)
