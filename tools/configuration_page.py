"""Write docs/configuration.md from conf/ and its comments.

Run it by ``make configuration-page``; a test fails where the page in docs/ is stale.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from omegaconf import OmegaConf

from defeat.config import conf_dir

TARGET = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

COMMANDS = ("train", "eval", "predict", "export", "import", "demo", "data_check", "data_split")
PREFIXES = {"detector": "student.", "transforms": "data.train_transforms."}
"""What the keys of a group stand under where that is not the name of the group."""
GROUPS = {
    "data": "What is trained and validated on: `data=NAME`",
    "transforms": "What is done to training images: `transforms@data.train_transforms=NAME`",
    "detector": "The networks: `detector@student=NAME`, `detector@teacher=NAME` with its keys at `teacher.`",
    "distiller": "The losses between teacher and student: `distiller=NAME`. Their weights are listed in\n"
    "[Experiments](experiments.md#distillers), and [Loss weights](loss-weights.md) sets them by measurement",
    "optim": "Optimiser and learning rate: `optim=NAME`",
    "trainer": "Devices, precision, length, validations: `trainer=NAME`. Other arguments of Lightning's\n"
    "`Trainer` can be added, such as `+trainer.limit_train_batches=10`",
    "callbacks": "What happens around the training: `callbacks=NAME`, or `'callbacks=[ema,early_stopping]'`",
    "logger": "Where curves go: `logger=NAME`, or several,\n"
    " `'logger=[default,wandb]'` ([Dashboards](dashboards.md#wb-and-mlflow))",
    "preflight": "The checks before a distilled run: `preflight=NAME`",
    "hparams_search": "Searches by Optuna: `-m hparams_search=NAME`",
    "hydra/launcher": "Where the runs of a sweep are computed: `-m hydra/launcher=NAME`",
    "hydra/sweeper": "The study of a search, which `hparams_search` chooses",
}
"""Groups of conf/ in the order of the page; experiments have a page of their own."""

INTRO = """\
# Configuration

<!-- made by `make configuration-page` from conf/ and its comments: do not edit -->

Every command takes words of the form `key=value`. This page lists the keys with their defaults, as they are
typed; `defeat-train --help-all` prints them too, and `--cfg job --resolve` what a command composes:

```sh
defeat-train +experiment=scenes --cfg job --resolve
```

**Change a value**, such as the weights of a loss, the length or the learning rate:

```sh
defeat-train +experiment=scenes distiller.terms.neck.background_weight=2
defeat-train +experiment=scenes trainer.max_steps=1000 optim.optimizer.lr=5e-4
```

**Choose a file** of a group, `conf/<group>/<name>.yaml`, by `group=name`. An experiment is a file that makes
all choices:

```sh
defeat-train +experiment=scenes distiller=fgfi trainer=cpu
```

**Add** a key that is not there with `+key=value`, set it whether it is there or not with `++key=value`, and
leave one out with `~key`. **Sweep** over values with `-m key=a,b,c`. Words with brackets, blanks or `$` stand
in quotes: `'format=[onnx,core]'`. A folder of your own files is added by `--config-dir=conf`
([Adding a method](adding-a-method.md)).

**Tab** completes commands, with all names of conf/ and all keys, in bash after

```sh
for script in train eval predict export import demo; do eval "$(defeat-$script -sc install=bash)"; done
```

which may stand in `~/.bashrc` where the virtual environment is always active. In zsh the same works after
`autoload -Uz compinit bashcompinit; compinit; bashcompinit`; in fish it is
`defeat-train -sc install=fish | source`. What follows a comma or stands in quotes is not completed.

`null` is no value, `???` has to be given, and `${name}` is the value of another key. A key `_target_` names
the class or function that takes its neighbours as arguments, so that one of your own can be put in its place.
"""


class Key(NamedTuple):
    """One key of a file."""

    name: str
    """As it is typed, with the keys that it stands under."""
    value: str
    """As the file has it."""
    comment: str


def read_keys(text: str) -> list[Key]:
    """List the keys of a YAML file that hold values, in its order, with the comments beside and above."""
    root = yaml.compose(text)
    return list(_keys(root, "", text.splitlines())) if isinstance(root, yaml.MappingNode) else []


def _keys(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Key]:
    for name, value in node.value:
        full = f"{prefix}{name.value}"
        if full in ("defaults", "_partial_", "_convert_") or name.value in ("_partial_", "_convert_", "help"):
            continue
        above = _comment_above(lines, name.start_mark.line)
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            beside = _comment(lines[name.start_mark.line][name.end_mark.column + 1 :])
            if above or beside:
                yield Key(full, "", " ".join(filter(None, (above, beside))))
            yield from _keys(value, f"{full}.", lines)
        else:
            source = _source(value, lines)
            beside = _comment(lines[name.start_mark.line][name.end_mark.column + 1 :].replace(source, "", 1))
            yield Key(full, source, " ".join(filter(None, (above, beside))))


def _source(node: yaml.Node, lines: list[str]) -> str:
    """The value as it is written, a list of several lines as one of brackets."""
    start, end = node.start_mark, node.end_mark
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return f"[{', '.join(_source(item, lines) for item in node.value)}]"
    return lines[start.line][start.column : end.column if start.line == end.line else None].strip()


def _comment(rest: str) -> str:
    return rest.partition("#")[2].strip() if rest.strip().startswith("#") else ""


def _comment_above(lines: list[str], at: int) -> str:
    """The lines of comment that stand directly above a key, but for the head of the file."""
    first = at
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().lstrip("# ") for line in lines[first:at]) if first > 0 else ""


def head(text: str) -> str:
    """What the comment at the top of a file says, without commands and Hydra's directive."""
    taken: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        said = line.lstrip("#").strip()
        if said.startswith(("defeat-", "tensorboard")):
            said = f"`{said.partition('   ')[0]}`"
        if not said.startswith("@package"):
            taken.append(said)
    said = _escaped(" ".join(taken))
    return said if not said or said.endswith((".", "`")) else f"{said}."


def base(text: str) -> str:
    """The files of the same group that a file begins with, in words."""
    defaults = OmegaConf.create(text).get("defaults", [])
    names = [f"`{name}`" for name in defaults if isinstance(name, str) and name != "_self_"]
    return f"Begins with {' and '.join(names)}." if names else ""


def _escaped(text: str) -> str:
    """Markdown that shows text as it is: brackets of its own are no HTML, and no cell ends inside."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*_\[\]$])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts).replace("|", "\\|")


def _table(keys: list[Key], prefix: str) -> list[str]:
    rows = [f"| `{prefix}{key.name}` | {_code(key.value)} | {_escaped(key.comment)} |" for key in keys]
    return ["| key | default | |", "| --- | --- | --- |", *rows, ""] if rows else []


def _code(value: str) -> str:
    return f"`{value}`".replace("|", "\\|") if value else ""


def _group(group: str) -> list[str]:
    paths = sorted((conf_dir() / group).glob("*.yaml"), key=lambda path: (path.stem != "default", path.stem))
    lines = [f"## {group}", "", f"{GROUPS[group]}.", ""]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        keys = read_keys(text)
        package = re.match(r"# @package (\S+)", text)
        prefix = PREFIXES.get(group, f"{group.replace('/', '.')}.")
        prefix = {None: prefix, "_global_": "", "hydra": "hydra."}[package and package[1]]
        lines += [f"### {group}={path.stem}", "", " ".join(filter(None, (head(text), base(text)))), ""]
        lines += _table(keys, prefix)
    return lines


def render() -> str:
    """Render the page."""
    lines = [INTRO]
    for name in COMMANDS:
        text = (conf_dir() / f"{name}.yaml").read_text(encoding="utf-8")
        title = f"defeat-{name.replace('_', ' ')}"
        keys = [key for key in read_keys(text) if not key.name.startswith("hydra.")]
        lines += [f"## {title}", "", head(text), "", *_table(keys, "")]
    for group in GROUPS:
        lines += _group(group)
    text = "\n".join(lines).rstrip("\n") + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
