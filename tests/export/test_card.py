"""The model card says what is known, whatever strangers have called their classes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

from defeat.evaluation import COCO_KEYS
from defeat.evaluation.matching import Integers
from defeat.export.card import Card, CardKeys, model_card
from defeat.export.figures import Figures
from defeat.export.student import TrainedStudent

HOSTILE = (
    "a|b",
    "x\n---\nlicense: gpl",
    "<script>alert(1)</script>",
    "`*_[x](y)",
    "käfer 🐞",
    "\u202eabc",
    "# c",
)


def card(classes: tuple[str, ...], keys: CardKeys, confusion: Integers | None, **config: Any) -> str:
    student = TrainedStudent(
        nn.Identity(),
        classes,
        tuple(range(10, 10 + len(classes))),
        Path("best.ckpt"),
        "f" * 64,
        {"name": classes[0], "data": {"root": f"/home/me/{classes[0]}".replace("\n", "")}, **config},
        record={"global_step": 7, "defeat": {"data": {"train": "abc"}, "teacher": None}},
    )
    coco = {key: i / 100 for i, key in enumerate(COCO_KEYS)} | {"APl": math.nan}
    figures = Figures(coco, dict.fromkeys(classes, 0.25), "a test", confusion)
    files = {"student.pth": "the weights"}
    return model_card(
        Card(
            student,
            keys,
            figures,
            None,
            None,
            files,
            {"student.pth": "load()"},
            ["It is small."],
            {"torch": "2"},
        )
    )


def test_names_of_strangers_stay_names():
    text = card(HOSTILE, CardKeys(license="mit"), np.eye(len(HOSTILE) + 1, dtype=np.int64))
    _, head, body = text.split("---\n", 2)
    content = yaml.safe_load(head)
    assert content["license"] == "mit"
    metrics = content["model-index"][0]["results"][0]["metrics"]
    assert {m["type"]: m["value"] for m in metrics} == {
        key: i / 100 for i, key in enumerate(COCO_KEYS) if key != "APl"
    }
    assert "<script" not in re.sub(r"\\<", "", body)
    assert "\u202e" not in text
    assert "/home/me" not in text
    # each table has as many cells in every row as in its head
    for table in re.findall(r"(?:^\|.*\|\n)+", body, re.M):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table
    rows = [line for line in body.splitlines() if re.match(r"\| \d+ \| .* \| 1\d \|$", line)]
    assert len(rows) == len(HOSTILE)


def test_nothing_is_guessed():
    text = card(("cell",), CardKeys(), None)
    content = yaml.safe_load(text.split("---\n", 2)[1])
    assert "license" not in content
    assert "datasets" not in content
    assert text.count("not stated") == 2
    assert "teacher" not in text.partition("## Training")[2]
    assert "objects of 1 class, trained without a teacher" in text


def test_of_many_classes_the_frequent_confusions_are_listed():
    classes = tuple(f"c{i}" for i in range(91))
    counts = 5 * np.eye(92, dtype=np.int64)
    counts[3, 4], counts[80, 2] = 15, 3
    text = card(classes, CardKeys(name="many"), counts)
    assert "\n# many\n" in text
    table = text.partition("| object | found as | times | share |\n")[2].split("\n\n")[0].splitlines()[1:]
    assert table == ["| c3 | c4 | 15 | 0.750 |", "| c80 | c2 | 3 | 0.375 |"]
