"""Find runs and read their files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from defeat.detectors.weights.run_config import copy_config
from defeat.errors import DataError, WeightsError
from defeat.evaluation.detections import DETECTIONS_FILE, Detections, read_detections
from defeat.evaluation.image_result import ImageResult
from defeat.io.text import quote

CONFIG = "config.yaml"
_KEYS = ("name", "seed", "run_dir", "student", "distiller", "data")
_REMEDY = "runs of this version write it at every validation, so train it again or let it go on (ckpt_path)"


class FinishedRun(NamedTuple):
    """A training run."""

    folder: Path
    config: dict[str, Any]
    """The whole configuration, with all interpolations resolved."""
    detections: Detections
    """Detections of the last validation."""
    written: float
    """Time at which they were written, seconds."""
    training_data: str | None
    """Fingerprint of the training split; None where the run does not say."""

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.config["name"])

    @property
    def seed(self) -> int:
        """Seed of initial weights, order and augmentation."""
        return int(self.config["seed"])

    @property
    def seeds(self) -> tuple[int, str]:
        """The seed, and that of the data, which follows it unless it was given."""
        return self.seed, str(self.config["data"].get("seed"))


def find_runs(paths: Sequence[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Read the runs that are, or lie below, ``paths``; each once, in the order of the paths.

    Returns:
        The runs, and a warning where runs in a searched folder hold no detections.

    Raises:
        DataError: a path is no folder or there is no run with detections below it; or a run's files cannot be
            read.
    """
    runs: dict[Path, FinishedRun] = {}
    without: dict[Path, None] = {}
    for path in paths:
        folders = list(_run_folders(path))
        validated = [folder for folder in folders if (folder / DETECTIONS_FILE).is_file()]
        if not validated:
            raise DataError(_nothing(path, folders))
        without.update(dict.fromkeys(folder for folder in folders if folder not in validated))
        for folder in validated:
            if folder.resolve() not in runs:
                runs[folder.resolve()] = _read(folder)
    names = ", ".join(map(str, without))
    warnings = [f"left out, as they hold no {DETECTIONS_FILE} (unfinished?): {names}"] if without else []
    return list(runs.values()), warnings


def with_same_truth(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Select the runs that were measured by the same ground truth: that of most runs, or of equals the first.

    Returns:
        The runs, and for each of the others a warning that says in what it differs.

    Raises:
        DataError: the validation of a run saw no image.
    """
    alike: list[list[FinishedRun]] = []
    for run in runs:
        if not run.detections.images:
            raise DataError(f"{run.folder}: its validation saw no image")
        same = (group for group in alike if _differ(group[0].detections, run.detections) is None)
        group = next(same, None)
        if group is None:
            alike.append([run])
        else:
            group.append(run)
    kept = max(alike, key=len)
    warnings = [
        f"left out, as only runs with the same ground truth can be compared: {run.folder} was validated on "
        f"other {_differ(kept[0].detections, run.detections)} than {kept[0].folder}"
        for group in alike
        if group is not kept
        for run in group
    ]
    return kept, warnings


def _run_folders(path: Path) -> Iterator[Path]:
    """Folders with a configuration, those of a sweep in the order of its jobs."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    for folder, below, files in os.walk(path):
        if CONFIG in files:
            yield Path(folder)
            below.clear()
        # Hydra keeps configurations of its own in hidden folders.
        below[:] = sorted((name for name in below if not name.startswith(".")), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which 2 stands before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _nothing(path: Path, folders: Sequence[Path]) -> str:
    if not folders:
        return (
            f"{path}: neither a run folder nor one with runs below it "
            f"(a run holds {CONFIG} and {DETECTIONS_FILE})"
        )
    if folders == [path]:
        return f"{path}: this run holds no {DETECTIONS_FILE}; {_REMEDY}"
    return f"{path}: none of the {len(folders)} runs below it holds {DETECTIONS_FILE}; {_REMEDY}"


def _read(folder: Path) -> FinishedRun:
    path = folder / DETECTIONS_FILE
    return FinishedRun(
        folder, _config(folder / CONFIG), read_detections(path), path.stat().st_mtime, _training_data(folder)
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        # It may come from anybody: nothing in it is resolved, and what is left to resolve is refused.
        read = copy_config(path, OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    except WeightsError as error:
        raise DataError(str(error)) from error
    if missing := [key for key in _KEYS if key not in read]:
        raise DataError(f"{path}: not the configuration of a run, as it lacks {', '.join(missing)}")
    if not isinstance(read["seed"], int) or not all(isinstance(read[k], dict) for k in ("data", "student")):
        kinds = ", ".join(f"{key} is {quote(read[key])}" for key in ("seed", "data", "student"))
        raise DataError(f"{path}: not the configuration of a run: {kinds}")
    return read


def _training_data(folder: Path) -> str | None:
    """Fingerprint in data.json, if there is one: it only serves a warning."""
    try:
        content = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        return str(content["splits"]["train"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _differ(first: Detections, other: Detections) -> str | None:
    if first.classes != other.classes:
        return f"classes ({', '.join(first.classes)}; {', '.join(other.classes)})"
    if first.images.keys() != other.images.keys():
        return f"images ({len(first.images)}; {len(other.images)})"
    if first.max_dets != other.max_dets:
        return f"numbers of detections (evaluation.max_dets; {first.max_dets}; {other.max_dets})"
    for index, image in first.images.items():
        if not _same_truth(image, other.images[index]):
            return f"boxes (first at image {index})"
    return None


def _same_truth(first: ImageResult, other: ImageResult) -> bool:
    fields = ("true_boxes", "true_labels", "ignore", "area")
    return all(getattr(first, name).equal(getattr(other, name)) for name in fields)
