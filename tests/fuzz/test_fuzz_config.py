"""Command lines with anything wrong: everything that they configure is built, or one line says why not."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from trials import Tally, sizes, try_inputs

from defeat.cli.error_messages import explain
from defeat.config import build, compose_config, to_plain
from defeat.data import DetectionDataModule
from defeat.detectors import Detector

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on odd settings

SHRUNK = (
    "backbone=resnet10",
    "fpn_channels=8",
    "box_head_channels=8",
    "returned_layers=[1]",
    "anchor_sizes=null",
)

VALUES = (
    "0", "1", "-1", "2", "0.5", "1e400", "-1e-9", "nan", "inf", "9223372036854775808", "1_0", "null", "true",
    "false", "abc", "''", "'a b'", "[]", "[1]", "[1,2]", "[a,null]", "[[1]]", "{}", "{a:1}", "{_target_:x}",
    "${seed}", "${nope}", "${oc.env:NOPE}", "${}", "a/b", "../x", "/dev/zero", "1,2", "é", "\\x00", "'\n'",
    "defeat.nope", "torch.nn.ReLU", "raise", "skip", "auto", "cpu", "frozen", "resnet18", "teacher", "last",
)  # fmt: skip
"""No value that would rightly take much memory or time: this asks about mistakes."""

PREFIXES = ("", "", "", "", "+", "++", "~")
NOISE = ("", "", "", "", ".x", "s", " ", "[0]", ".", "@", "=", "\n")
GROUPS = (
    "preflight",
    "measure",
    "data",
    "optim",
    "trainer",
    "logger",
    "callbacks",
    "distiller",
    "detector@student",
    "detector@teacher",
)
CHOICES = (
    "coco",
    "voc0712",
    "sgd_1x",
    "adamw",
    "ddp",
    "default",
    "neck",
    "fgfi",
    "pkd",
    "fcos_r18",
    "nope",
    "null",
)
KEYS_APART = ("run_dir", "output_root", "name", "data.root", "data.num_workers")
"""Paths that would be written to, and processes that would be started."""


class Word(NamedTuple):
    key: int
    prefix: str
    noise: str
    value: str


class Case(NamedTuple):
    words: list[Word]
    choices: list[tuple[str, str]]


cases = st.builds(
    Case,
    st.lists(
        st.builds(
            Word,
            st.integers(0, 10**4),
            st.sampled_from(PREFIXES),
            st.sampled_from(NOISE),
            st.sampled_from(VALUES),
        ),
        min_size=1,
        max_size=2,
    ),
    st.just([])
    | st.just([])
    | st.lists(st.tuples(st.sampled_from(GROUPS), st.sampled_from(CHOICES)), min_size=1, max_size=1),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return distillation(tmp_path_factory.mktemp("data"))


def distillation(root: Path) -> list[str]:
    """Words of a distillation on one picture, which is put into ``root``."""
    Image.new("RGB", (60, 40)).save(root / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    splits = [
        f"data.{split}.{key}"
        for split in ("train", "val")
        for key in ("annotation_file=a.json", "image_root=.")
    ]
    return [
        "detector@student=scenes_student",
        "detector@teacher=scenes_student",
        "distiller=neck_cls",
        "optim=adamw",
        f"data.root={root}",
        "data.num_workers=0",
        f"run_dir={root / 'run'}",
        *splits,
        *(f"{role}.model.{word}" for role in ("student", "teacher") for word in SHRUNK),
    ]


@pytest.fixture(scope="module")
def keys(base: list[str]) -> list[str]:
    """Every key of that configuration, groups too."""
    found: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for name in node:
            key = f"{prefix}{name}"
            found.append(key)
            if not OmegaConf.is_interpolation(node, name) and isinstance(node[name], DictConfig):
                walk(node[name], f"{key}.")

    walk(compose_config("train", base), "")
    return [key for key in found if key not in KEYS_APART]


@sizes(quick=6, full=200)
def test_changed_command_lines(
    examples: int,
    base: list[str],
    keys: list[str],
    tally: Tally,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def check(case: Case) -> str:
        words = [*base, *(f"{group}={choice}" for group, choice in case.choices)]
        words += [
            f"{word.prefix}{keys[word.key % len(keys)]}{word.noise}={word.value}" for word in case.words
        ]
        try:
            build_all(compose_config("train", words))
        except Exception as error:
            line = explain(error, "train", words)
            assert line is not None, "".join(traceback.format_exception(error))[-3000:]  # noqa: PT017 - not what is expected
            assert line.isprintable()
            return f"refused: {line}"
        return "built"

    try_inputs("command lines", cases, check, examples, tally)


def build_all(config: DictConfig) -> None:
    """Everything that a training builds before its first step, by the functions it is built with."""
    to_plain(config)
    data: DetectionDataModule = build(config.data)
    data.setup("fit")
    student: Detector = build(config.student, classes=list(data.classes))
    if config.distiller is not None and config.teacher is not None:
        teacher: Detector = build(config.teacher, classes=list(data.classes))
        build(config.distiller, student=student.model, teacher=teacher.model, _partial_=False)
    optimizer = build(config.optim.optimizer)(student.model.parameters())
    build(config.optim.rate)(optimizer, total_steps=100, steps_per_epoch=10)
    nodes: list[Any] = [*(config.logger or {}).values(), *(config.callbacks or {}).values()]
    built = [build(node) for node in nodes if node]
    callbacks = [part for part in built if isinstance(part, Callback)]
    build(config.trainer, logger=False, callbacks=callbacks)
    torch.manual_seed(0)
