"""Which checkpoint a run goes on from, and whether it is of the same training."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from defeat.detectors.weights import load_plain
from defeat.distill import weight_keys
from defeat.errors import ConfigError
from defeat.io.atomic_write import replacing
from defeat.io.text import cut
from defeat.training.callbacks.exact_resume import place_of

log = logging.getLogger(__name__)

SAME = (
    "data.train_transforms",
    "distiller.",
    "optim.",
    "seed",
    "student.model.",
    "teacher.model.",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip",
    "trainer.precision",
    "trainer.sync_batchnorm",
)
"""Keys that make a training what it is. Of the optimiser's, a forced resume takes the new ones."""

WEIGHTS = ("distiller.balance", "distiller.share")
"""Keys, by their beginnings, from which the weights of losses follow. They may change, as weights may."""

OPTIMIZER = "optim.optimizer._target_"
"""What cannot change even so: another optimiser keeps another state."""

FILES_OF_THE_START = ("gradients.md", "gradients.csv", "preflight.md", "preflight.json")
"""What a run writes at its start and a resumed one does not write again."""

SINCE = {"student.model.size_divisible": 32, "teacher.model.size_divisible": 32}
"""Keys that older checkpoints do not have, and what they stood for then."""

LAST = "checkpoints/last.ckpt"


def find_checkpoint(ckpt_path: str | None, runs: Path, run_dir: Path, *, swept: bool) -> Path | None:
    """Resolve ``ckpt_path``: None, a file, ``last`` or ``auto``.

    ``last`` is the newest ``last.ckpt`` of the runs of a name, or, in a sweep, of this job. ``auto`` is the
    same where there is one, and a new start where there is none.

    Args:
        runs: the folder that holds the runs of the name, ``<output_root>/<name>``.
        run_dir: of this run; a job of a sweep that is run again gets ``<run_dir>_2`` and so on.
        swept: this run is a job of a sweep.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    if ckpt_path is None:
        return None
    if ckpt_path not in ("last", "auto"):
        if not Path(ckpt_path).is_file():
            raise ConfigError(f"ckpt_path={ckpt_path}: no such file; give a checkpoint, `last` or `auto`")
        return Path(ckpt_path)
    found = _of_job(run_dir) if swept else list(runs.glob(f"**/{LAST}"))
    if found:
        return max(found, key=lambda path: path.stat().st_mtime)
    if ckpt_path == "auto":
        return None
    where = f"{run_dir} and what it was before has no" if swept else f"no run below {runs} has a"
    raise ConfigError(f"ckpt_path=last: {where} last.ckpt; leave ckpt_path out, or write `auto`")


def _of_job(run_dir: Path) -> list[Path]:
    """The last checkpoints of a sweep's job, of whichever time that it ran: ``7``, ``7_2``, ``7_3`` ..."""
    job = re.sub(r"_\d+$", "", run_dir.name)
    folders = run_dir.parent.iterdir() if run_dir.parent.is_dir() else ()
    same = (folder for folder in folders if re.fullmatch(re.escape(job) + r"(_\d+)?", folder.name))
    return [folder / LAST for folder in same if (folder / LAST).is_file()]


def check_same(checkpoint: Path, now: Mapping[str, Any], *, force: bool) -> None:
    """Refuse to go on from a checkpoint of another training: teacher, classes, data, order, optimiser.

    Args:
        checkpoint: of :func:`find_checkpoint`.
        now: what the run would write into its own checkpoints.
        force: only warn.

    Raises:
        ConfigError: it is of another training, or says nothing of how to resume it.
        WeightsError: it cannot be read.
    """
    content = load_plain(checkpoint)
    place_of(content)
    differences = list(_differences(content.get("defeat", {}), now))
    if not differences:
        return
    if any(difference.startswith(OPTIMIZER) for difference in differences):
        raise ConfigError(
            f"{checkpoint} has the state of another optimiser: set {OPTIMIZER} back, or begin a new run with "
            f"its weights, student.weights={checkpoint}"
        )
    text = f"{checkpoint} is of another training: {'; '.join(differences)}"
    if not force:
        raise ConfigError(f"{text}. Set them back, or go on all the same with force_resume=true")
    log.warning("%s; resumed all the same", text)


def take_over(checkpoint: Path, run_dir: Path) -> None:
    """Copy what the run that is resumed wrote at its start into the new run's folder."""
    before = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    for name in FILES_OF_THE_START:
        if (before / name).is_file() and not (run_dir / name).exists():
            with replacing(run_dir / name) as part:
                shutil.copyfile(before / name, part)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Describe each way in which two trainings are not the same."""
    teachers = [_identity(one.get("teacher")) for one in (before, now)]
    pairs: dict[str, tuple[Any, Any]] = {
        "teacher file": (teachers[0], teachers[1]),
        "classes": (before.get("classes"), now["classes"]),
    }
    for part, name in (("data", "{} data"), ("order", "{}")):
        for key, value in now[part].items():
            pairs[name.format(key)] = ((before.get(part) or {}).get(key), value)
    # Weights of losses may be changed on the way; that is warned of elsewhere.
    weights = set(map(str, weight_keys(now["config"].get("distiller"))))
    theirs, ours = (dict(_flat(one.get("config"))) for one in (before, now))
    for key in sorted(theirs.keys() | ours.keys()):
        if key.startswith(SAME) and not (key in weights or key.startswith(WEIGHTS)):
            old, new = theirs.get(key, SINCE.get(key)), ours.get(key)
            pairs[key] = (_moved(old), _moved(new)) if key.endswith("._target_") else (old, new)
    for what, (old, new) in pairs.items():
        if old != new:
            yield f"{what} {cut(str(old), 60)} -> {cut(str(new), 60)}"


def _identity(teacher: Mapping[str, Any] | None) -> Any:
    """A file is its content, wherever it lies."""
    return teacher and (teacher["sha256"] or teacher["source"])


def _moved(target: Any) -> Any:
    """Targets of this project without their module: older checkpoints name the one where they were then."""
    return target.rpartition(".")[2] if str(target).startswith("defeat.") else target


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
