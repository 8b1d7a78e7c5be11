"""Record in a run's folder how the run was made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from defeat.config import CONFIG, write_config
from defeat.data import DetectionDataModule
from defeat.errors import ConfigError, StorageError
from defeat.io.atomic_write import cannot_write, write_text
from defeat.training.run import Run

PACKAGES = (
    "defeat",
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "pycocotools",
    "faster-coco-eval",
    "numpy",
    "pillow",
)


def write_record(run: Run) -> None:
    """Write config.yaml (resolved), environment.json and data.json into a run folder that has no run yet.

    Raises:
        ConfigError: it has one.
        StorageError: it cannot be written.
    """
    _claim(run.run_dir)
    write_config(run.run_dir, run.config)
    _write_json(run.run_dir / "environment.json", environment())
    _write_json(run.run_dir / "data.json", describe_data(run.data))


def check_no_run(run_dir: Path) -> None:
    """Refuse a folder that has a run: nothing of a run is ever overwritten.

    Raises:
        ConfigError: it has one.
    """
    if (run_dir / CONFIG).exists():
        raise ConfigError(
            f"run_dir={run_dir} holds a run already, which would be overwritten: choose another folder, or "
            "leave run_dir out; to go on from that run add ckpt_path=<its last.ckpt>"
        )


def _claim(run_dir: Path) -> None:
    """Make the folder this run's; of two runs that ask at the same moment one is refused."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / CONFIG).touch(exist_ok=False)
    except FileExistsError:
        check_no_run(run_dir)
        raise
    except OSError as error:
        raise StorageError(cannot_write(run_dir, error)) from error


def environment() -> dict[str, Any]:
    """Versions and the machine's kind."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": versions(PACKAGES),
    }


def describe_data(data: DetectionDataModule) -> dict[str, Any]:
    """Classes, and per split its source, size, fingerprint and what reading it changed."""
    prints = data.fingerprints()
    return {
        "classes": list(data.classes),
        "class_ids": list(data.class_ids),
        "divided": data.division and data.division.lists,
        "splits": {
            split: {
                "source": read.source,
                "images": len(read.records),
                "boxes": sum(len(record.boxes) for record in read.records),
                "sha256": prints[split],
                "counts": read.counts,
            }
            for split, read in data.annotations.items()
        },
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Look up the versions of packages; None for those that are not installed."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
