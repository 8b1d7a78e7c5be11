"""``--help`` of the commands that Hydra configures: what they do, their keys and groups, at 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping

import yaml  # type: ignore[import-untyped]

from defeat.config import conf_dir

_WIDTH = 79
_KEY = re.compile(r"^( *)([\w.]+):(.*?)(?:\s+#\s*(.*))?$")

OF_GROUPS = {
    "data.root=": "folder of the data set",
    "data.batch_size=": "images of a step, in each process",
    "data.num_workers=": "processes that decode images, or auto",
    "student.weights=": "what the student starts from: a checkpoint or a torchvision name",
    "teacher.weights=": "checkpoint of the trained teacher",
    "optim.optimizer.lr=": "learning rate",
    "trainer.max_epochs=": "length; trainer.max_steps too",
    "trainer.precision=": "32-true, bf16-mixed or 16-mixed",
}
"""Keys of a training that come with the files of its groups and are set most often."""


def help_text(config_name: str) -> str:
    """Write the help of a command from its configuration file, whose comments say what its keys mean.

    Keys that other files bring along are left to ``--help-all``.
    """
    text = (conf_dir() / f"{config_name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    template: str = content["hydra"]["help"]["template"]
    usage = re.split(r"^(?:Choices|Any key|----)", template.partition("Usage\n")[2], flags=re.MULTILINE)[0]
    lines = [*textwrap.wrap(content["hydra"]["help"]["header"], _WIDTH), "", "Usage"]
    usages = usage.rstrip().splitlines()
    apart = any(len(line) > _WIDTH and "   " in line.strip() for line in usages)
    lines += [part for line in usages for part in _usage(line, apart)]
    choices = _choices(content.get("defaults", []), config_name)
    mounted = {key.rpartition("@")[2] for key in choices}
    meanings = {key: (value, meaning) for key, value, meaning in _keys(text)}
    lines += ["", "Keys (KEY=VALUE)"]
    for key, (value, meaning) in meanings.items():
        if key not in mounted:
            lines += _entry(key if value is None else f"{key}={value}", meaning)
    if config_name == "train":
        lines += [line for key, meaning in OF_GROUPS.items() for line in _entry(key, meaning)]
    groups = list(_groups(choices, {key: meanings[key][1] for key in mounted & meanings.keys()}))
    lines += ["", "Groups (GROUP=NAME)", *groups] if groups else []
    return "\n".join([*lines, "", *_options(config_name)])


def _usage(line: str, apart: bool) -> Iterator[str]:
    """Put what a command is for below it, where both do not fit beside each other for all of them."""
    command, _, meaning = line.strip().partition("   ")
    if len(line) <= _WIDTH and not (apart and meaning):
        yield line
        return
    if not command.startswith("defeat-"):
        yield from textwrap.wrap(line.strip(), _WIDTH, initial_indent="  ", subsequent_indent="  ")
        return
    words = textwrap.wrap(command, _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    yield from (f"  {'' if i == 0 else '    '}{word}{' ' + chr(92)}" for i, word in enumerate(words[:-1]))
    yield f"  {'    ' if len(words) > 1 else ''}{words[-1]}"
    if meaning.strip():
        yield f"      {meaning.strip()}"


def _keys(text: str) -> Iterator[tuple[str, str | None, str]]:
    """List the keys that have a comment, with their defaults, and None where further keys are below one."""
    body = text.partition("\nhydra:\n")[0]
    body = re.sub(r"^defaults:\n(?:[ -].*\n)*", "", body, flags=re.MULTILINE)
    parents: list[str] = []
    for line in body.splitlines():
        found = _KEY.match(line)
        if not found:
            continue
        parents = [*parents[: len(found[1]) // 2], found[2]]
        value, meaning = found[3].strip(), found[4]
        key = ".".join(parents)
        if meaning and key != "run_dir" and (value or len(parents) == 1):
            yield (
                key,
                None if not value else "" if value.startswith("$") else value.replace("???", ""),
                meaning,
            )


def _choices(defaults: list[object], config_name: str) -> dict[str, str | None]:
    """Return the groups that the command's file chooses from, and their default choices."""
    entries = [next(iter(entry.items())) for entry in defaults if isinstance(entry, dict)]
    chosen = {str(key): choice for key, choice in entries if not str(key).startswith("override ")}
    if config_name != "train":
        return chosen
    return {"+experiment": None, **chosen, "transforms@data.train_transforms": None}


def _groups(choices: Mapping[str, str | None], meanings: Mapping[str, str]) -> Iterator[str]:
    """List groups and their files, once for those that stand under several names."""
    folders: dict[str, list[str]] = {}
    for key in choices:
        folders.setdefault(key.removeprefix("+").partition("@")[0], []).append(key)
    for folder, keys in folders.items():
        for key in keys:
            default = f"  (default: {choices[key]})" if choices[key] else ""
            meaning = meanings.get(key.rpartition("@")[2])
            yield from _wrapped(f"  {key}{default}{f'  {meaning}' if meaning else ''}", "")
        names = sorted(path.stem for path in (conf_dir() / folder).glob("*.yaml"))
        yield from _wrapped(", ".join(names), " " * 6)


def _wrapped(text: str, indent: str) -> list[str]:
    later = indent or " " * 4
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False)


def _entry(key: str, meaning: str) -> Iterator[str]:
    indent = " " * 28
    first = f"  {key}".ljust(28)
    wrapped = textwrap.wrap(meaning, _WIDTH - 28)
    if len(first) > 28 or first[-1] != " ":
        yield first.rstrip()
        yield from (indent + line for line in wrapped)
    else:
        yield first + wrapped[0]
        yield from (indent + line for line in wrapped[1:])


def _options(config_name: str) -> list[str]:
    completion = [
        "",
        "Completion by Tab, in bash; other shells: docs/configuration.md",
        f'  eval "$(defeat-{config_name} -sc install=bash)"',
    ]
    several = ["  -m                        one run for each combination of values with commas"]
    return [
        "Options",
        "  --help-all                all keys, with their values",
        "  --cfg job --resolve       what these words compose; nothing is run",
        *(several if config_name == "train" else []),
        "  --version                 versions of this project and of its libraries",
        "  hydra.verbose=true        show where an error came from",
        *(completion if not config_name.startswith("data_") else []),
    ]
