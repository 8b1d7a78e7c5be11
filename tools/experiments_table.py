"""Write docs/experiments.md from conf/experiment and conf/distiller.

Run it by ``make experiments-table``; a test fails where the page in docs/ is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from defeat.config import compose_config, conf_dir

TARGET = Path(__file__).resolve().parents[1] / "docs" / "experiments.md"

DATA = {
    "COCO": "COCO",
    "VOC": "Pascal VOC 07+12",
    "scenes": "Generated scenes, as in the demo",
    "BCCD": "Blood cells",
    "folder": "Your own pictures",
}
"""Titles of the sections, by what the file says the data are, in their order."""
FAMILIES = {"faster_rcnn": "Faster R-CNN", "retinanet": "RetinaNet", "fcos": "FCOS"}
BACKBONES = {"resnet": "R", "mobilenet_v": "MobileNetV"}
DETAILS = {
    "full_mask": "every cell",
    "random_mask": "random cells",
    "gaussian_mask": "Gaussian",
    "fine_grained_mask": "fine-grained",
    "AnchorTerm": "on anchors",
}
"""What is said of a mask or term beside its weights; the usual ones go without."""

INTRO = """\
# Experiments

<!-- made by `make experiments-table` from conf/experiment and conf/distiller: do not edit -->

Every row that the paper or its reference code publishes is a file, `conf/experiment/<experiment>.yaml`,
which starts with its command. Train a pair's teacher first, then its distilled rows:

```sh
defeat-train +experiment=frcnn_r152 data.root=/data/coco download=true
defeat-train +experiment=frcnn_r152_r50 data.root=/data/coco download=true \\
  teacher.weights=runs/frcnn_r152/<run>/checkpoints/best.ckpt
```

RetinaNet and FCOS derive the strides of their anchors and points from the size of a batch, as in torchvision;
`student.model.strides=fixed` beside a row is what the authors' framework has, for teachers likewise.
It is the better one where many objects are larger than 256 pixels after the resize.

Every other method is `distiller=NAME` beside a row, with the names [below](#distillers). The weights that
the data's recipe sets come along. Give the run a `name` of its own, since runs are filed by it:

```sh
defeat-train +experiment=voc_frcnn_r101_r50 distiller=pkd name=voc_frcnn_r101_r50_pkd \\
  data.root=/data/VOCdevkit teacher.weights=runs/voc_frcnn_r101/<run>/checkpoints/best.ckpt
```

All rows of a pair, or several distillers, are one command (`++`, since Hydra looks at the words once
without the swept experiment, where there is no teacher):

```sh
defeat-train -m '+experiment=glob(frcnn_r152_r50*)' seed=0,1,2 data.root=/data/coco download=true \\
  ++teacher.weights=runs/frcnn_r152/<run>/checkpoints/best.ckpt
defeat-train -m +experiment=frcnn_r152_r50 distiller=neck_object,neck_background data.root=/data/coco \\
  teacher.weights=runs/frcnn_r152/<run>/checkpoints/best.ckpt
```

Decoupling alone is worth 0.3 to 0.4 AP in the paper, so that seeds are needed to see it. On several GPUs
start each run by itself with `trainer=ddp data.batch_size=<16 / N>`: a sweep runs one process.

**Terms** come with the weights of object / background, or one weight where they are not told apart: `neck`,
the pyramid's maps, object being the boxes unless other cells are named; `head`, class scores of the
teacher's proposals unless said otherwise; `backbone`, its stages. **Paper**: COCO val AP in percent, and
AP50 of VOC 07 test, there also that of the authors' code. A hyphen means that no figure is known;
*extension* that the paper has no such row.
"""


class Row(NamedTuple):
    """One experiment, as its file says."""

    name: str
    paper: str
    """The figure, in Markdown."""
    data: str
    config: DictConfig


def compose(name: str) -> DictConfig:
    """Compose an experiment."""
    return compose_config("train", [f"+experiment={name}", "run_dir=run"])


def read_row(path: Path, config: DictConfig) -> Row:
    """Read the header of an experiment's file."""
    text = path.read_text(encoding="utf-8")
    root = re.search(r"data\.root=<(\w+)>", text)
    paper = re.search(r"^# Paper: (.+)\.$", text, re.MULTILINE)
    figure = re.sub(r"^no figure(; |$)", "", paper[1]) if paper else ""
    figure = "*extension*" if figure == "not in it" else figure or "-"
    data = {None: "scenes", "VOCdevkit": "VOC"}.get(root and root[1], root[1] if root else "")
    return Row(path.stem, figure, data, config)


def families(config: DictConfig) -> list[str]:
    """The families of teacher and student; one where they agree or there is no teacher."""
    nodes = [node for node in (config.teacher, config.student) if node is not None]
    return list(dict.fromkeys(FAMILIES[node.model._target_.rpartition(".")[2]] for node in nodes))


def detectors(config: DictConfig) -> str:
    """``Faster R-CNN R152 → R50``."""
    nodes = [node for node in (config.teacher, config.student) if node is not None]
    backbones = [node.model.backbone for node in nodes]
    for long, short in BACKBONES.items():
        backbones = [backbone.replace(long, short) for backbone in backbones]
    if len(families(config)) == 1:
        return f"{families(config)[0]} {' → '.join(backbones)}"
    return " → ".join(map(" ".join, zip(families(config), backbones, strict=True)))


def terms(distiller: DictConfig | None) -> str:
    """``neck 4 / 16, head 2 / 2``; what is not as usual in brackets."""
    if distiller is None:
        return "-"
    return ", ".join(f"{name} {_term(term)}" for name, term in distiller.terms.items() if term is not None)


def _term(term: DictConfig) -> str:
    weights = " / ".join(f"{value:g}" for key, value in term.items() if str(key).endswith("weight"))
    targets = [part["_target_"].rpartition(".")[2] for part in (term, term.get("mask")) if part is not None]
    details = [DETAILS[target] for target in targets if target in DETAILS]
    if term.get("proposals") == "student":
        details.append("student's proposals")
    if term.get("pooled"):
        details.append("one mean over all")
    if term.get("strides") is not None:
        details.append(f"strides {', '.join(map(str, term.strides))}")
    return f"{weights} ({'; '.join(details)})" if details else weights


def _order(row: Row) -> tuple[object, ...]:
    """By family; in each teachers and plain students first, then by the paper's figure."""
    names = families(row.config)
    figure = float((re.search(r"\d+\.\d+", row.paper) or ["0"])[0])
    alone = row.config.teacher is None
    return (
        len(names),
        [list(FAMILIES.values()).index(name) for name in names],
        not alone,
        -figure if alone else figure,
        row.name,
    )


def _table(head: str, rows: list[tuple[str, ...]]) -> list[str]:
    columns = head.count("|") + 1
    return [f"| {head} |", f"|{' --- |' * columns}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _distillers() -> list[tuple[str, ...]]:
    rows = []
    for path in sorted((conf_dir() / "distiller").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        config = compose_config("train", [f"distiller={path.stem}", "run_dir=run"])
        rows.append((f"`{path.stem}`", first, terms(config.distiller)))
    return rows


def render(compose: Callable[[str], DictConfig] = compose) -> str:
    """Render the page.

    Args:
        compose: gives the configuration of an experiment.
    """
    files = (conf_dir() / "experiment").glob("*.yaml")
    rows = sorted((read_row(path, compose(path.stem)) for path in files), key=_order)
    lines = [INTRO]
    for data, title in DATA.items():
        cells = [
            (
                f"`{row.name}`",
                detectors(row.config),
                terms(row.config.distiller),
                row.paper,
            )
            for row in rows
            if row.data == data
        ]
        lines += [f"## {title}", "", *_table("experiment | detectors | terms | paper", cells)]
    lines += ["## Distillers", "", "The weights here are those of COCO's recipe.", ""]
    lines += _table("distiller | what it is | terms", _distillers())
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
