"""Refuse to go on from a checkpoint of another training, and take over what the run before has written."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from defeat.config import CONFIG, to_plain
from defeat.detectors.create import SINCE
from defeat.detectors.weights import load_plain
from defeat.distill import WeightKey, weight_keys
from defeat.errors import ConfigError
from defeat.io.atomic_write import replacing
from defeat.io.text import cut
from defeat.training.balance import with_weights
from defeat.training.callbacks.exact_resume import loop_position
from defeat.training.loggers.tracker import ServiceRun

log = logging.getLogger(__name__)

SAME = (
    "callbacks.ema.decay",
    "data.train_transforms",
    "distiller.",
    "optim.",
    "seed",
    "student.model.",
    "teacher.class_map",
    "teacher.ema",
    "teacher.model.",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip",
    "trainer.precision",
    "trainer.sync_batchnorm",
)
"""Keys that make a training what it is. Of the optimiser's, a forced resume takes the new ones."""

WEIGHTS = ("distiller.balance", "distiller.share")
"""Keys, by their beginnings, from which the weights of losses follow. They may change, as weights may."""

OPTIMIZER = ("optim.optimizer._target_", "optim.pretrained_lr_mult")
"""Keys that cannot change even then: another optimiser, or other groups of parameters, keep another state."""

FILES_OF_THE_START = ("gradients.md", "gradients.csv", "preflight.md", "preflight.json")
"""Files that a run writes at its start and a resumed one does not write again."""

RENAMED = {"optim.rate": "optim.lr_schedule"}
"""Keys of older checkpoints, by what they are called now."""


class Resumed(NamedTuple):
    """A checkpoint that a run goes on from, without its tensors."""

    path: Path
    provenance: Mapping[str, Any]
    """Its record of how it was made: configuration, teacher, data, classes, order."""
    service_runs: Mapping[str, ServiceRun]
    """The run in services such as W&B, see :meth:`~defeat.training.loggers.Tracker.service_run`."""


def read_resumed(path: Path) -> Resumed:
    """Read a checkpoint as far as it says what it is of.

    Raises:
        ConfigError: it does not say how to resume it.
        WeightsError: it cannot be read.
    """
    content = load_plain(path)
    loop_position(content)
    return Resumed(path, content.get("defeat", {}), content.get("service_runs", {}))


def keep_weights(config: DictConfig, resumed: Resumed) -> DictConfig:
    """Give a resumed run the loss weights that were balanced at its start; warn where others have changed.

    Raises:
        ConfigError: the weights are to be balanced, and the checkpoint does not say them all.
    """
    if config.distiller is None:
        return config
    plain = to_plain(config)
    # By the keys of the terms as they are now: a checkpoint need not say which of its keys are weights.
    keys = weight_keys(plain["distiller"])
    wanted = _weights(plain, keys)
    before = _weights(resumed.provenance.get("config") or {}, keys)
    if config.distiller.get("balance") == "gradient":
        lacking = [key for key in wanted if key not in before]
        if lacking:
            raise ConfigError(
                f"distiller.balance=gradient: a run that is resumed keeps its weights, and {resumed.path} "
                f"does not say what {', '.join(lacking)} was: leave balance out and set the weights"
            )
        weights = {key: before[key] for key in wanted}
        log.info("the loss weights are those of %s: %s", resumed.path, weights)
        return OmegaConf.create(with_weights(plain, weights))
    changed = [
        f"{key} {before[key]:g} -> {now:g}"
        for key, now in wanted.items()
        if key in before and before[key] != now
    ]
    if changed:
        log.warning("loss weights differ from those of %s: %s", resumed.path, ", ".join(changed))
    return config


def check_same(resumed: Resumed, now: Mapping[str, Any], *, force: bool) -> None:
    """Refuse to go on from a checkpoint of another training: teacher, classes, data, order, optimiser.

    Args:
        resumed: the checkpoint.
        now: what the run would write into its own checkpoints.
        force: only warn.

    Raises:
        ConfigError: it is of another training.
    """
    checkpoint = resumed.path
    differences = list(_differences(resumed.provenance, now))
    if not differences:
        return
    for key in OPTIMIZER:
        if any(difference.startswith(key) for difference in differences):
            raise ConfigError(
                f"{checkpoint} has the state of another optimiser: set {key} back, or begin a new run with "
                f"its weights, student.weights={checkpoint}"
            )
    text = f"{checkpoint} is of another training: {'; '.join(differences)}"
    if not force:
        raise ConfigError(f"{text}. Set them back, or go on all the same with force_resume=true")
    log.warning("%s; resumed all the same", text)


def take_over(checkpoint: Path, run_dir: Path) -> None:
    """Copy what the run that is resumed wrote at its start into the new run's folder."""
    before = next(
        (folder for folder in checkpoint.parents[:2] if (folder / CONFIG).is_file()), checkpoint.parent
    )
    for name in FILES_OF_THE_START:
        if (before / name).is_file() and not (run_dir / name).exists():
            with replacing(run_dir / name) as part:
                shutil.copyfile(before / name, part)


def _weights(config: Mapping[str, Any], keys: Sequence[WeightKey]) -> dict[str, float]:
    terms = (config.get("distiller") or {}).get("terms") or {}
    return {
        str(key): terms[key.term][key.argument] for key in keys if key.argument in (terms.get(key.term) or {})
    }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Describe each way in which two trainings are not the same."""
    teachers = [_identity(side.get("teacher")) for side in (before, now)]
    pairs: dict[str, tuple[Any, Any]] = {
        "teacher file": (teachers[0], teachers[1]),
        "classes": (before.get("classes"), now["classes"]),
    }
    for part, name in (("data", "{} data"), ("order", "{}")):
        for key, value in now[part].items():
            pairs[name.format(key)] = ((before.get(part) or {}).get(key), value)
    pairs |= config_differences(before.get("config") or {}, now["config"])
    for what, (old, new) in pairs.items():
        if old != new:
            yield f"{what} {cut(str(old), 60)} -> {cut(str(new), 60)}"


def config_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each key that makes two runs different trainings.

    Args:
        before: configuration of the run that is resumed.
        now: configuration of this run.
    """
    # Weights of losses may be changed on the way; that is warned of elsewhere.
    weights = set(map(str, weight_keys(now.get("distiller"))))
    old_config, new_config = (dict(flat_config(side)) for side in (before, now))
    pairs = {}
    for key in sorted(old_config.keys() | new_config.keys()):
        if key.startswith(SAME) and not (key in weights or key.startswith(WEIGHTS)):
            old, new = old_config.get(key, SINCE.get(key.rpartition(".model.")[2])), new_config.get(key)
            pairs[key] = (_moved(old), _moved(new)) if key.endswith("._target_") else (old, new)
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def _identity(teacher: Mapping[str, Any] | None) -> Any:
    """A file is its content, wherever it lies."""
    return teacher and (teacher["sha256"] or teacher["source"])


def _moved(target: Any) -> Any:
    """Targets of this project without their module: older checkpoints name the one where they were then."""
    return target.rpartition(".")[2] if str(target).startswith("defeat.") else target


def flat_config(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the keys and values of the leaves, under the names that the keys have now."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            whole = f"{key}.{name}" if key else str(name)
            yield from flat_config(value, RENAMED.get(whole, whole))
    else:
        yield key, node
