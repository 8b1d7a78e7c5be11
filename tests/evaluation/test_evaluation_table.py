"""The JSON form of an evaluation and its table."""

import io
import json
import math

import pytest
from rich.console import Console

from defeat.evaluation import COCO_KEYS, VOC_KEYS, Evaluation, evaluation_table


@pytest.fixture
def evaluation():
    coco = {key: n / 16 for n, key in enumerate(COCO_KEYS)} | {"APs": math.nan}
    return Evaluation(
        coco, {"ant": 0.25, "bee": math.nan}, dict(zip(VOC_KEYS, (0.625, 0.875), strict=True)), 12
    )


def test_nan_is_null_in_json(evaluation):
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    assert json.loads(text)["coco"]["APs"] is None
    assert json.loads(text)["per_class"] == {"ant": 0.25, "bee": None}


def _render(evaluation: Evaluation, **options) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(evaluation_table(evaluation, **options))
    return console.file.getvalue()


def test_the_table_shows_every_figure(evaluation):
    text = _render(evaluation, title="student")
    assert "student, 12 images" in text
    rows = [line.split() for line in text.splitlines()]
    for keys in (COCO_KEYS[:6], COCO_KEYS[6:]):
        values = [evaluation.coco[key] for key in keys]
        assert rows[rows.index(list(keys)) + 2] == ["-" if math.isnan(v) else f"{v:.3f}" for v in values]
    assert [line.split() for line in text.splitlines() if line.strip().startswith(("ant", "bee"))] == [
        ["ant", "0.250"],
        ["bee", "-"],
    ]
    assert ["0.625", "0.875"] in rows


@pytest.mark.parametrize("classes", [0, 1, 12, 13, 80])
def test_no_name_is_cut_and_no_line_is_too_long(evaluation, classes):
    names = [f"class {n} with_a_rather_long_name_and_no_space" for n in range(classes)]
    text = _render(evaluation._replace(per_class=dict.fromkeys(names, 0.125)))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("0.125") == classes + sum(value == 0.125 for value in evaluation.coco.values())


def test_names_with_brackets_are_no_markup(evaluation):
    assert "[red]fish[/]" in _render(evaluation._replace(per_class={"[red]fish[/]": 0.5}), title="[a]")
    assert "[a], 12 images" in _render(evaluation, title="[a]")
