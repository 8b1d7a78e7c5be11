"""Runs as `train` builds them, stopped where the checks would begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defeat.config import compose_config
from defeat.detectors.weights import ASSETS
from defeat.preflight import Finding, Subject
from defeat.run.train import train

SHIPPED = ASSETS / "scenes_teacher.safetensors"


class Keep:
    """Stands in for the checks, and keeps what they would be given."""

    only = True
    subject: Subject

    def __init__(self, folder: str, **settings: Any) -> None:
        pass

    def __call__(self, subject: Subject) -> None:
        Keep.subject = subject


def words(run_dir: Path, scenes: Path, *more: str) -> list[str]:
    """Overrides of the scenes experiments: the real detectors and the shipped teacher, few images."""
    return [
        f"run_dir={run_dir}",
        f"data.root={scenes}",
        "data.train.images=48",
        "data.val.images=40",
        "data.batch_size=4",
        "~logger",
        "measure=null",
        "callbacks.progress=null",
        *more,
    ]


def subject(run_dir: Path, scenes: Path, *more: str, experiment: str = "scenes") -> Subject:
    """A run that is built and has not begun, the distilled one of the scenes unless another is named."""
    stop = ["preflight=only", "preflight._target_=tests.helpers.subjects.Keep"]
    train(compose_config("train", [f"+experiment={experiment}", *words(run_dir, scenes, *stop, *more)]))
    return Keep.subject


def only(found: Finding) -> str:
    """The cause and the mend of the one severe problem."""
    (problem,) = [problem for problem in found.problems if problem.severe]
    assert found.result == "failed"
    return f"{problem.cause} | {problem.mend}"
