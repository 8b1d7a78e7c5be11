"""Write docs/experiments.md from conf/experiment: commands and figures from headers, the rest composed.

Run it by ``make experiments-table``; a test fails where the file in docs/ is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from defeat.config import compose_config, conf_dir

TARGET = Path(__file__).resolve().parents[1] / "docs" / "experiments.md"

PAIRS = {
    "frcnn_r152_r50": "COCO, Faster R-CNN R152 → R50",
    "retinanet_r152_r50": "COCO, RetinaNet R152 → R50",
    "voc_frcnn_r101_r50": "VOC 07+12, Faster R-CNN R101 → R50",
    "voc_frcnn_r152_r50": "VOC 07+12, Faster R-CNN R152 → R50",
    "retinanet_r152_frcnn_r50": "COCO, RetinaNet R152 → Faster R-CNN R50",
    "frcnn_r152_retinanet_r50": "COCO, Faster R-CNN R152 → RetinaNet R50",
    "fcos_r152_r50": "COCO, FCOS R152 → R50",
    "scenes": "Generated scenes (the demo), Faster R-CNN R18 → R10",
    "bccd": "Blood cells (BCCD), Faster R-CNN R50 → MobileNetV2",
}
"""Experiments with the full method, by name, in the order of the sections; others of a pair begin like it."""

ROWS = ("fgfi", "tadf", "all_neck", "neck", "neck_all_cls", "neck_cls", "")
"""What follows a pair's name, in the paper's order."""

ABLATIONS = (
    "neck_object",
    "neck_background",
    "neck_cls_positive",
    "neck_cls_negative",
    "neck_cls_student",
    "neck_random",
    "neck_gaussian",
    "neck_fine_grained",
)

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

NONE = "-"
EXTENSION = "not in it"

INTRO = """\
# Experiments

<!-- made by `make experiments-table` from conf/experiment: do not edit -->

One file each in `conf/experiment`, which starts with its command:

```sh
defeat-train +experiment=frcnn_r152_r50_neck data.root=/data/coco download=true \\
  teacher.weights=runs/frcnn_r152/<run>/checkpoints/best.ckpt
```

Train a pair's teacher first; then all its distilled rows, one after the other, are one command:

```sh
defeat-train -m '+experiment=glob(frcnn_r152_r50*)' data.root=/data/coco download=true \\
  ++teacher.weights=runs/frcnn_r152/<run>/checkpoints/best.ckpt
```

(`++`, since Hydra looks at the words once without the swept experiment, where there is no teacher.)
`glob(frcnn_r152_r50*,exclude=*_neck_*)` leaves some out, and `+experiment=NAME,NAME` lists them. Add
`seed=0,1,2` for seeds: decoupling alone is worth 0.3 to 0.4 AP in the paper. On several GPUs start each row
by itself with `trainer=ddp data.batch_size=<16 / N>`: a sweep runs one process.

The rows of a pair differ in the distiller alone, and from the student alone in teacher and distiller. Choose
a row by its experiment: `distiller=NAME` on the command line would keep the weights that a VOC row sets.

**Terms** come with the weights of object / background, or one weight where they are not told apart: `neck`,
the pyramid's maps, object being the boxes unless other cells are named; `head`, class scores of the teacher's
proposals unless said otherwise; `backbone`, its stages. **Paper**: COCO val AP in percent, and AP50 of VOC 07
test, there also that of the authors' code. Where there is a hyphen we know no figure. *Extension*: not in the
paper.

Not in the paper either: the pairs on generated scenes and blood cells, and TADF for RetinaNet. RetinaNet has
no proposals, so it has no rows of the head, and TADF is left with its Gaussian mask.
"""


class Header(NamedTuple):
    """The comment that an experiment's file starts with."""

    command: str
    """As written: without the comment signs, with line breaks and their backslashes."""
    text: str
    """What it is, in one line."""
    paper: str | None
    """After ``Paper:``, without the full stop; None where the file does not say."""
    teacher: str | None
    """The experiment that makes the teacher's weights, from the command."""


def names() -> list[str]:
    """All experiments, by name."""
    return sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


def read_header(name: str) -> Header:
    """Read the comment that starts a file.

    Raises:
        ValueError: it does not begin with the package line and a command.
    """
    lines = (conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    package, *comment = lines[:first]
    if package != "# @package _global_" or not comment or not comment[0].startswith("# defeat-train "):
        raise ValueError(f"{name}.yaml does not start with '# @package _global_' and its command")
    end = 1 + next(i for i, line in enumerate(comment) if not line.endswith("\\"))
    command = "\n".join(line.removeprefix("# ") for line in comment[:end])
    text = " ".join(line.removeprefix("#").strip() for line in comment[end:])
    paper = re.search(r"(?:^|\s)Paper: (.+?)\.(?=\s|$)", text)
    teacher = re.search(r"<best\.ckpt of \+experiment=(\w+)>", command)
    return Header(command, text, paper and paper[1], teacher and teacher[1])


def student_of(pair: str) -> str:
    """The experiment without a teacher that a pair is built on, through its lists of defaults."""
    text = (conf_dir() / "experiment" / f"{pair}.yaml").read_text(encoding="utf-8")
    parent = re.search(r"^  - (\w+)$", text, re.MULTILINE)
    if parent is None:
        raise ValueError(f"{pair}.yaml is built on no other experiment")
    return student_of(parent[1]) if parent[1] in PAIRS else parent[1]


def members(pair: str) -> tuple[list[str], list[str], list[str]]:
    """Rows, ablations and extensions of a pair, without its teacher and its plain student."""
    ends = {name: name.removeprefix(pair).removeprefix("_") for name in names() if _belongs(name, pair)}
    extra = [n for n, end in ends.items() if end not in (*ROWS, *ABLATIONS, "teacher", "plain")]
    rows, ablations = (
        sorted((n for n, end in ends.items() if end in order), key=lambda n: order.index(ends[n]))
        for order in (ROWS, ABLATIONS)
    )
    return rows, ablations, extra


def _belongs(name: str, pair: str) -> bool:
    return name == pair or name.startswith(f"{pair}_")


def describe_detectors(config: DictConfig) -> str:
    """``Faster R-CNN R152 → R50``."""
    family, backbone = _detector(config.student)
    if config.teacher is None:
        return f"{family} {backbone}"
    teacher, big = _detector(config.teacher)
    return f"{teacher} {big} → {backbone if teacher == family else f'{family} {backbone}'}"


def _detector(node: DictConfig) -> tuple[str, str]:
    backbone = node.model.backbone
    for long, short in BACKBONES.items():
        backbone = backbone.replace(long, short)
    return FAMILIES[node.model._target_.rpartition(".")[2]], backbone


def describe_terms(config: DictConfig) -> str:
    """``neck 4 / 16, head 2 / 2``; what is not as usual in brackets."""
    if config.distiller is None:
        return NONE
    terms = {name: term for name, term in config.distiller.terms.items() if term is not None}
    return ", ".join(f"{name} {_term(term)}" for name, term in terms.items())


def _term(term: DictConfig) -> str:
    weights = " / ".join(f"{value:g}" for key, value in term.items() if str(key).endswith("weight"))
    parts = [term, *(term[key] for key in ("mask", "loss") if term.get(key) is not None)]
    targets = [part["_target_"].rpartition(".")[2] for part in parts]
    details = [DETAILS[target] for target in targets if target in DETAILS]
    if term.get("proposals") == "student":
        details.append("student's proposals")
    if term.get("pooled"):
        details.append("one mean over all")
    if term.get("strides") is not None:
        details.append(f"strides {', '.join(map(str, term.strides))}")
    return f"{weights} ({'; '.join(details)})" if details else weights


def _figure(header: Header) -> str:
    if header.paper is None:
        return NONE
    if header.paper == EXTENSION:
        return "*extension*"
    return re.sub(r"^no figure.*?(; |$)", "", header.paper) or NONE


def _table(rows: list[str], compose: Callable[[str], DictConfig]) -> list[str]:
    lines = ["| experiment | detectors | terms | paper |", "| --- | --- | --- | --- |"]
    for name in rows:
        config = compose(name)
        link = f"[`{name}`](../conf/experiment/{name}.yaml)"
        cells = (link, describe_detectors(config), describe_terms(config), _figure(read_header(name)))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _section(pair: str, title: str, compose: Callable[[str], DictConfig]) -> tuple[list[str], list[str]]:
    """Lines of a pair's section, and the experiments in it."""
    rows, ablations, extensions = members(pair)
    header = read_header(pair)
    teacher = header.teacher or compose(pair).teacher.weights  # shipped ones are called like theirs
    rows = [teacher, student_of(pair), *rows]
    mark = " (extension)" if header.paper == EXTENSION else ""
    lines = [f"## {title}{mark}", "", *_table(rows, compose)]
    for heading, more in (("Ablations:", ablations), ("Extensions, not in the paper:", extensions)):
        if more:
            lines += [heading, "", *_table(more, compose)]
    commands = [read_header(name).command for name in (teacher, rows[1], pair)]
    return [*lines, "```sh", *commands, "```", ""], [*rows, *ablations, *extensions]


def _compose(name: str) -> DictConfig:
    return compose_config("train", [f"+experiment={name}", "run_dir=run"])


def render(compose: Callable[[str], DictConfig] = _compose) -> str:
    """Render the document.

    Args:
        compose: gives the configuration of an experiment.

    Raises:
        ValueError: an experiment belongs to no pair.
    """
    lines, shown = [INTRO], set()
    for pair, title in PAIRS.items():
        section, listed = _section(pair, title, compose)
        lines += section
        shown |= set(listed)
    missing = sorted(set(names()) - shown)
    if missing:
        raise ValueError(f"these experiments belong to no pair of PAIRS: {', '.join(missing)}")
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
