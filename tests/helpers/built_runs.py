"""Built runs of the scenes experiments, which have not begun."""

from __future__ import annotations

from pathlib import Path

from defeat.config import compose_config
from defeat.detectors.weights import ASSETS
from defeat.preflight import Finding
from defeat.run.build import build_run
from defeat.training.run import Run

SHIPPED = ASSETS / "scenes_teacher.safetensors"


def words(run_dir: Path, scenes: Path, *more: str) -> list[str]:
    """Overrides of the scenes experiments: the real detectors and the shipped teacher, few images."""
    return [
        f"run_dir={run_dir}",
        f"data.root={scenes}",
        "data.train.images=48",
        "data.val.images=40",
        "data.batch_size=4",
        "~logger",
        "callbacks.measure=null",
        "callbacks.progress=null",
        *more,
    ]


def built_run(run_dir: Path, scenes: Path, *more: str, experiment: str = "scenes") -> Run:
    """The distilled run of the scenes, unless another is named."""
    return build_run(compose_config("train", [f"+experiment={experiment}", *words(run_dir, scenes, *more)]))


def severe(finding: Finding) -> str:
    """The cause and the remedy of the one severe problem."""
    (problem,) = [problem for problem in finding.problems if problem.severe]
    assert finding.result == "failed"
    return f"{problem.cause} | {problem.remedy}"
