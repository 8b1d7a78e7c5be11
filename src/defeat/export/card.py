"""The model card: README.md beside an export, with the head that the Hugging Face Hub reads.

Nothing in it is guessed: what neither the checkpoint nor the command says is not there, or is called unknown.
Names may come from anybody, and are escaped for YAML and Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from defeat.evaluation.confusion import MISSED, confusion_rows, confusions, rule
from defeat.evaluation.matching import Integers
from defeat.export.figures import Figures
from defeat.export.speed import Speed
from defeat.export.student import TrainedStudent
from defeat.io.text import counted, printable
from defeat.render import Table, decimals, escape_markdown

SIZES = {"APs": "small, below 32 x 32 pixels", "APm": "medium, to 96 x 96", "APl": "large"}

MOST_CLASSES = 20
"""Classes up to which the confusion is a whole matrix; of more, the most frequent pairs are listed."""


class CardKeys(NamedTuple):
    """What the user says for the card; None where nothing is said."""

    name: str | None = None
    license: str | None = None
    teacher_license: str | None = None
    data_license: str | None = None
    datasets: Sequence[str] = ()


class Card(NamedTuple):
    """What a card is about."""

    student: TrainedStudent
    keys: CardKeys
    figures: Figures | None
    speed: Speed | None
    sentence: str | None
    """The student beside its teacher."""
    files: Mapping[str, str]
    """File name to what it is."""
    usage: Mapping[str, str]
    """Title to a block of Python."""
    limits: Sequence[str]
    """Whole sentences."""
    versions: Mapping[str, str | None]
    """Package to version; None for one that is not installed."""


def model_card(card: Card) -> str:
    """Write the card."""
    return f"---\n{_head(card)}---\n\n" + "\n\n".join(_paragraphs(card)) + "\n"


def _name(card: Card) -> str:
    return card.keys.name or str((card.student.config or {}).get("name") or "student")


def _head(card: Card) -> str:
    keys = card.keys
    graphs_alone = all(name.endswith((".onnx", ".json", ".pt2")) for name in card.files)
    head: dict[str, Any] = {
        "library_name": "onnx" if graphs_alone else "torchvision",
        "pipeline_tag": "object-detection",
    }
    if keys.license:
        head["license"] = keys.license
    if keys.datasets:
        head["datasets"] = list(keys.datasets)
    head["tags"] = ["object-detection", "knowledge-distillation", "defeat"]
    if card.figures is not None:
        head["model-index"] = [{"name": printable(_name(card)), "results": [_result(card, card.figures)]}]
    text: str = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return text


def _result(card: Card, figures: Figures) -> dict[str, Any]:
    data = card.keys.datasets[0] if card.keys.datasets else _data_name(card.student)
    metrics = [
        {"type": name, "value": round(value, 5), "name": f"COCO {name}"}
        for name, value in figures.coco.items()
        if not math.isnan(value)
    ]
    return {
        "task": {"type": "object-detection"},
        "dataset": {"name": printable(data), "type": printable(data)},
        "metrics": metrics,
    }


def _data_name(student: TrainedStudent) -> str:
    root = ((student.config or {}).get("data") or {}).get("root")
    return Path(root).name if isinstance(root, str) and Path(root).name else "unknown"


def _paragraphs(card: Card) -> Iterator[str]:
    student = card.student
    yield f"# {escape_markdown(_name(card))}"
    yield _summary(student)
    yield _table(Table(("file", "what it is"), list(card.files.items()), text_columns=2))
    yield "## How to load it"
    for title, code in card.usage.items():
        yield from (f"{title}:", f"```python\n{code.strip()}\n```")
    yield "## Classes"
    rows = [
        (i, name, number)
        for i, (name, number) in enumerate(zip(student.classes, student.class_ids, strict=True), 1)
    ]
    yield _table(Table(("label", "class", "category id of the data set"), rows, text_columns=0))
    yield "## Figures"
    yield from _figures(card.figures, student.classes)
    if card.speed is not None:
        yield from _speed(card.speed)
    if card.sentence:
        yield escape_markdown(card.sentence)
    yield "## Training"
    yield _table(Table(("", ""), list(_training(card).items()), text_columns=2))
    yield from _losses(student)
    yield "## Limits"
    yield "\n".join(f"- {escape_markdown(line)}" for line in card.limits)
    yield "## Versions"
    yield ", ".join(f"{name} {number}" for name, number in card.versions.items() if number)


def _table(table: Table) -> str:
    return table.as_markdown().rstrip("\n")


def _summary(student: TrainedStudent) -> str:
    family = type(student.detector).__name__
    model = ((student.config or {}).get("student") or {}).get("model") or {}
    backbone = f" over {model['backbone']}" if isinstance(model.get("backbone"), str) else ""
    taught = "distilled from a larger detector" if _distiller(student) else "trained without a teacher"
    text = f"{family}{backbone} that finds objects of {counted(len(student.classes), 'classes')}, {taught}."
    return escape_markdown(text)


def _figures(figures: Figures | None, classes: Sequence[str]) -> Iterator[str]:
    if figures is None:
        yield "None are known: the checkpoint was written at no validation of these weights."
        return
    yield f'COCO\'s figures, found by {escape_markdown(figures.source)}; "-" is for what had no object.'
    keys = [key for key in figures.coco if key not in SIZES]
    yield _table(Table(keys, [[decimals(figures.coco[key]) for key in keys]], text_columns=0))
    rows = [(words, decimals(figures.coco[key])) for key, words in SIZES.items()]
    yield _table(Table(("size of the objects", "AP"), rows))
    yield _table(Table(("class", "AP"), [(name, decimals(x)) for name, x in figures.per_class.items()]))
    if figures.confusion is not None:
        yield f"Objects by class, and by the class as which they were found: {rule()}."
        yield _table(_confusion(figures.confusion, classes))


def _confusion(matrix: Integers, classes: Sequence[str]) -> Table:
    if len(classes) <= MOST_CLASSES:
        return Table(("object", *classes, MISSED), list(confusion_rows(matrix, classes)))
    frequent = confusions(matrix, classes)[:MOST_CLASSES]
    rows = [(pair.truth, pair.predicted, pair.objects, decimals(pair.share)) for pair in frequent]
    return Table(("object", "found as", "times", "share"), rows, text_columns=2)


def _speed(speed: Speed) -> Iterator[str]:
    yield "## Speed"
    yield f"{speed.table().title}, all in one alternating run."
    yield _table(speed.table())
    if speed.costs:
        yield _table(cost_table(speed))


def cost_table(speed: Speed) -> Table:
    """Parameters and FLOPs of the networks."""
    rows = [
        (name, f"{cost.parameters / 1e6:.2f} M", f"{cost.flops / 1e9:.2f} G", f"{cost.height} x {cost.width}")
        for name, cost in speed.costs.items()
    ]
    return Table(("network", "parameters", "FLOPs of an image", "of pixels"), rows)


def _training(card: Card) -> dict[str, str]:
    """Key to value of what the checkpoint says of the training."""
    student, keys = card.student, card.keys
    config = student.config or {}
    own = student.record.get("defeat") or {}
    rows = {"steps": str(student.record.get("global_step")), "experiment": str(config.get("name"))}
    rows |= {"seed": str(config.get("seed")), "images in a batch": str(_get(config, "data", "batch_size"))}
    rows["optimiser"] = _settings(_get(config, "optim", "optimizer"))
    rows["learning-rate schedule"] = _settings(_get(config, "optim", "lr_schedule"))
    rows["precision"] = str(_get(config, "trainer", "precision"))
    if student.averaged is not None:
        rows["weights"] = "averaged over the steps (EMA)" if student.averaged else "raw, beside averaged ones"
    rows["data set"] = ", ".join(keys.datasets) or _data_name(student)
    for split, digest in (own.get("data") or {}).items():
        rows[f"fingerprint of {split}"] = str(digest)
    rows["licence of the data"] = keys.data_license or "not stated"
    teacher = own.get("teacher")
    if isinstance(teacher, dict):
        rows["teacher"] = f"{Path(str(teacher.get('source'))).name}, SHA-256 {teacher.get('sha256')}"
        rows["licence of the teacher"] = keys.teacher_license or "not stated"
    rows["licence of these weights"] = keys.license or "not stated"
    rows["checkpoint"] = f"SHA-256 {student.sha256}"
    return rows


def _get(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _settings(node: Any) -> str:
    """The last word of a node's target, and its plain settings."""
    if not isinstance(node, dict):
        return "none"
    plain = [
        f"{key}={value}"
        for key, value in node.items()
        if not str(key).startswith("_") and isinstance(value, int | float | str | list)
    ]
    return ", ".join([str(node.get("_target_")).rpartition(".")[2], *plain])


def _distiller(student: TrainedStudent) -> dict[str, Any] | None:
    distiller = (student.config or {}).get("distiller")
    return distiller if isinstance(distiller, dict) else None


def _losses(student: TrainedStudent) -> Iterator[str]:
    terms = _get(_distiller(student), "terms")
    if isinstance(terms, dict) and terms:
        rows = [(str(name), _settings(term)) for name, term in terms.items() if term]
        yield "Losses of the distillation beside the detector's own, with their weights:"
        yield _table(Table(("term", "settings"), rows, text_columns=2))
