"""What a run folder says about how it was made."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from defeat.data import DetectionDataModule

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


def write_record(run_dir: Path, config: DictConfig, data: DetectionDataModule) -> None:
    """Write config.yaml (resolved), environment.json and data.json into a run folder."""
    write_config(run_dir, config)
    _write_json(run_dir / "environment.json", environment())
    _write_json(run_dir / "data.json", describe_data(data))


def write_config(run_dir: Path, config: DictConfig) -> None:
    """Write config.yaml (resolved) into a run folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")


def environment() -> dict[str, Any]:
    """Versions and the machine's kind."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def describe_data(data: DetectionDataModule) -> dict[str, Any]:
    """Classes, and per split its source, size, fingerprint and what reading it changed."""
    prints = data.fingerprints()
    return {
        "classes": list(data.classes),
        "class_ids": list(data.class_ids),
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
