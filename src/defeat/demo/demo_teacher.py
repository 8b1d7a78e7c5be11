"""The demo's teacher: shipped with the package, given by the user, or trained on the spot."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from defeat.config import compose_config, text_override
from defeat.detectors import read_weights
from defeat.detectors.weights import ASSETS
from defeat.errors import ConfigError
from defeat.io.atomic_write import replacing
from defeat.io.run_dirs import make_free_folder
from defeat.run.summary import print_summary
from defeat.run.train import train
from defeat.warning_filters import filter_warnings

SHIPPED_TEACHER = ASSETS / "scenes_teacher.safetensors"
"""Weights of +experiment=scenes_teacher in half precision, made by `make demo-teacher`. Any configuration may
name them: ``weights: scenes_teacher``."""


def export_teacher(checkpoint: Path, path: Path = SHIPPED_TEACHER) -> None:
    """Write a checkpoint's detector in half precision, without anything that training needs.

    Raises:
        WeightsError: the checkpoint cannot be read.
    """
    tensors = read_weights(checkpoint).tensors
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in halves.items()}, path)


def choose_teacher(choice: str | None, output: Path, train: Callable[[], Path]) -> Path:
    """Find the teacher's weights.

    Args:
        choice: None for the shipped ones, a path, or ``train`` to train one once per output folder.
        output: the demo's folder.
        train: trains one and returns the checkpoint.

    Raises:
        ConfigError: no such file.
    """
    if choice is None:
        return SHIPPED_TEACHER
    if choice != "train":
        if not Path(choice).is_file():
            raise ConfigError(f"teacher={choice}: no such file; null is the shipped one, `train` trains one")
        return Path(choice)
    kept = output / "teacher" / "teacher.safetensors"
    if not kept.is_file():
        checkpoint = train()
        with replacing(kept) as part:
            export_teacher(checkpoint, part)
    return kept


def main() -> None:
    """Train the shipped teacher anew: run +experiment=scenes_teacher and export it."""
    parser = argparse.ArgumentParser(prog="python -m defeat.demo.demo_teacher", description=main.__doc__)
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("demo/teacher"),
        help="folder of the run; gets a number if it exists",
    )
    parser.add_argument("--scenes", type=Path, default=Path("demo/scenes_teacher"), help="folder of images")
    parser.add_argument("--output", type=Path, default=SHIPPED_TEACHER, help="weights to write")
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as trainer.max_steps=10")
    given = parser.parse_args()
    filter_warnings()
    run_dir = make_free_folder(given.run_dir)
    config = compose_config(
        "train",
        [
            "+experiment=scenes_teacher",
            text_override("run_dir", run_dir),
            text_override("data.root", given.scenes),
            *given.overrides,
        ],
    )
    print_summary(train(config))
    export_teacher(run_dir / "checkpoints" / "last.ckpt", given.output)
    print(f"{given.output}: {given.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
