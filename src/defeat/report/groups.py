"""Groups of runs that are one experiment with several seeds, and the settings that tell groups apart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from defeat.errors import ConfigError
from defeat.report.runs import FinishedRun

_IGNORED_KEYS = {
    "seed",
    "data.seed",  # a copy of it
    "run_dir",
    "output_root",
    "ckpt_path",
    "force_resume",
    "neck_weights",  # what the distiller's weights are read from
    "preflight",
    "data.root",
    "data.num_workers",
    "data.pin_memory",
    "download",
    "student.download",
    "teacher.download",
    "logger",
    "measure",
    "callbacks.progress",
    "optimized_metric",
    "evaluation",
}
"""Keys that do not make another experiment: places, seeds, displays, and engines with equal results."""

_WEIGHTS_BEFORE = ("weight", "object_weight", "background_weight")
"""Weights of the terms that runs had when they did not record yet which weights they have found."""

_ABSENT = "absent"


class Group(NamedTuple):
    """Runs of one experiment that differ in the seed alone, in the order of their seeds."""

    label: str
    runs: list[FinishedRun]

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the first run."""
        return self.runs[0].config

    @property
    def seeds(self) -> list[int]:
        """Seeds in ascending order."""
        return [run.seed for run in self.runs]

    @property
    def steps(self) -> list[int]:
        """Numbers of steps that its runs were trained for, each once."""
        return sorted({run.detections.step for run in self.runs})


class SettingDifference(NamedTuple):
    """A key whose value is not the same in all configurations."""

    key: str
    values: list[str]
    """One for each configuration, as text."""


def group_runs(runs: Sequence[FinishedRun]) -> tuple[list[Group], list[str]]:
    """Put runs of equal configuration together, in the order in which they come.

    Only one of the runs of a group that have the same seed counts, the one trained furthest, and of equals
    the newest: they are no independent samples, and would make an interval look narrower than it is.

    Returns:
        The groups, and a warning for each group that had such repeats.
    """
    members: dict[str, list[FinishedRun]] = {}
    for run in runs:
        members.setdefault(json.dumps(_experiment_settings(run.config), sort_keys=True), []).append(run)
    groups, warnings = [], []
    for label, group in zip(_labels([group[0] for group in members.values()]), members.values(), strict=True):
        kept, repeats = _without_repeats(group)
        groups.append(Group(label, kept))
        if repeats:
            names = ", ".join(str(run.folder) for run in repeats)
            warnings.append(f"{label}: left out, as newer runs have the same seeds: {names}")
    return groups, warnings


def choose_baseline(groups: Sequence[Group], label: str | None = None) -> Group:
    """Find the group that the others are compared with.

    Args:
        label: label of the group, or its name where no other group has it; None chooses the only group
            without a distiller, else the first.

    Raises:
        ConfigError: there is no such group, or several have that name.
    """
    if label is None:
        plain = [group for group in groups if group.config["distiller"] is None]
        return plain[0] if len(plain) == 1 else groups[0]
    exact = [group for group in groups if group.label == label]
    matching = exact or [group for group in groups if group.runs[0].name == label]
    if len(matching) == 1:
        return matching[0]
    labels = ", ".join(repr(group.label) for group in groups)
    problem = "several groups are called so" if matching else "no such group"
    raise ConfigError(f"--baseline {label}: {problem}; there are {labels}")


def setting_differences(configs: Sequence[Mapping[str, Any]]) -> list[SettingDifference]:
    """List the keys in which configurations differ, but for places, seeds and names.

    A group of keys that another configuration does not have is one key.
    """
    compared = [_experiment_settings(config) for config in configs]
    for settings in compared:
        del settings["name"]
    return list(_walk_differences(compared))


def _experiment_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the keys that do not make the experiment."""
    stripped: dict[str, Any] = _strip(config, str(config["run_dir"]))
    distiller = stripped.get("distiller") or {}
    if distiller.get("balance") == "balanced":
        # Weights that the run found for itself are others with each seed; a weight of 0 is chosen.
        balanced = distiller.pop("balanced", None)
        for name, term in distiller["terms"].items():
            for key in _weights(term, f"distiller.terms.{name}.", balanced):
                term[key] = term[key] and "balanced"
    return stripped


def _weights(term: Mapping[str, Any] | None, prefix: str, balanced: Sequence[str] | None) -> list[str]:
    """List the keys of a term that hold weights which a run has found.

    Args:
        term: its entry in the configuration.
        prefix: of its keys in the whole configuration.
        balanced: what the run has recorded of its weights; None for a run of an older version.
    """
    if balanced is None:
        return [key for key in _WEIGHTS_BEFORE if key in (term or {})]
    return [key for key in term or {} if f"{prefix}{key}" in balanced]


def _strip(node: Any, run_dir: str, prefix: str = "") -> Any:
    if isinstance(node, Mapping):
        kept = {key: f"{prefix}{key}" for key in node if f"{prefix}{key}" not in _IGNORED_KEYS}
        return {str(key): _strip(node[key], run_dir, f"{path}.") for key, path in kept.items()}
    if isinstance(node, list):
        return [_strip(item, run_dir, f"{prefix}{i}.") for i, item in enumerate(node)]
    if isinstance(node, str) and f"{node}/".startswith(f"{run_dir}/"):
        return f"${{run_dir}}{node.removeprefix(run_dir)}"
    return node


def _without_repeats(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[FinishedRun]]:
    """The runs that count, by seed, and the others."""
    best: dict[tuple[int, str], FinishedRun] = {}
    for run in sorted(runs, key=lambda run: (run.detections.step, run.written)):
        best[run.seeds] = run
    kept = sorted(best.values(), key=lambda run: run.seed)
    return kept, [run for run in runs if all(run is not counted for counted in kept)]


def _labels(runs: Sequence[FinishedRun]) -> list[str]:
    """The name of each, with the keys that tell it from others of that name."""
    labels = [run.name for run in runs]
    for name in dict.fromkeys(labels):
        places = [i for i, run in enumerate(runs) if run.name == name]
        if len(places) > 1:
            chosen = _distinguishing(setting_differences([runs[i].config for i in places]), len(places))
            for n, i in enumerate(places):
                settings = ", ".join(f"{difference.key}={difference.values[n]}" for difference in chosen)
                labels[i] = f"{name} [{settings}]"
    return labels


def _distinguishing(candidates: Sequence[SettingDifference], groups: int) -> list[SettingDifference]:
    """The fewest keys, greedily, whose values differ between any two of the groups."""
    chosen: list[SettingDifference] = []

    def number_distinguished(keys: Sequence[SettingDifference]) -> int:
        return len({tuple(key.values[n] for key in keys) for n in range(groups)})

    while number_distinguished(chosen) < groups:
        chosen.append(max(candidates, key=lambda key: number_distinguished([*chosen, key])))
    return sorted(chosen, key=list(candidates).index)


def _walk_differences(nodes: Sequence[Any], prefix: str = "") -> Iterator[SettingDifference]:
    if all(isinstance(node, Mapping) for node in nodes):
        for key in dict.fromkeys(key for node in nodes for key in node):
            path = f"{prefix}.{key}" if prefix else key
            yield from _walk_differences([node.get(key, _ABSENT) for node in nodes], path)
    elif any(node != nodes[0] for node in nodes):
        yield SettingDifference(prefix, [_text(node) for node in nodes])


def _text(value: Any) -> str:
    """A value as the command line has it; for a group of keys the name of its target, if it has one."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return str(value["_target_"]).rpartition(".")[2]
        return str(yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)).strip()
    return value if isinstance(value, str) else json.dumps(value)
