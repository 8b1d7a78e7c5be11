"""The demo's steps, in order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from rich.console import Console

from defeat.config import compose_config, text_override
from defeat.demo.demo_teacher import choose_teacher
from defeat.demo.results import Row, draw_detections, results_table
from defeat.io.run_dirs import refuse_overwriting
from defeat.run.evaluate import evaluate
from defeat.run.train import train
from defeat.training.callbacks import KeepPredictions
from defeat.types import Annotations
from defeat.visual import plot_curves


class Demo(NamedTuple):
    """The results of the demo."""

    rows: list[Row]
    """Teacher, plain student, DeFeat student."""
    table: Path
    detections: Path
    curves: Path
    seconds: float


def run_demo(config: DictConfig, console: Console | None = None) -> Demo:
    """Train a plain and a distilled student of one teacher, and compare the three (conf/demo.yaml).

    Raises:
        DefeatError: anything in the configuration that the user can correct; or ``config.run_dir`` holds a
            demo already.
    """
    console = console or Console()
    started = time.perf_counter()
    output, here = Path(config.output), Path(config.run_dir)
    table, detections, curves = here / "results.md", here / "detections.png", here / "curves.png"
    # The students' folders too: a demo that was stopped has these alone.
    refuse_overwriting(table, detections, curves, here / "plain", here / "DeFeat")
    shared = [text_override("data.root", output / "scenes"), f"seed={config.seed}", *config.overrides]

    def train_teacher() -> Path:
        console.rule(f"teacher, {config.teacher_steps} steps")
        folder = here / "teacher"
        _train("scenes_teacher", folder, [*shared, *_length(config.teacher_steps)])
        return folder / "checkpoints" / "last.ckpt"

    weights = choose_teacher(config.teacher, output, train_teacher)
    console.rule(f"plain student, {config.steps} steps")
    plain = _train("scenes_plain", here / "plain", [*shared, *_length(config.steps)])
    console.rule(f"DeFeat student, {config.steps} steps")
    # The configuration's weights are for COCO: its background term alone would outweigh all else here.
    lesson = [
        *shared,
        *_length(config.steps),
        text_override("teacher.weights", weights),
        "distiller.balance=gradient",
    ]
    distilled = _train("scenes", here / "DeFeat", lesson)
    console.rule("comparison")
    teacher, annotations = _evaluate_teacher(weights, here, shared)
    rows = [teacher, plain, distilled]
    demo = Demo(rows, table, detections, curves, 0.0)
    draw_detections(annotations, rows, config.pictures, demo.detections)
    logged = {row.name: here / row.name / "csv" / "metrics.csv" for row in (plain, distilled)}
    plot_curves(logged, demo.curves, teacher_ap=teacher.evaluation.coco["AP"])
    results = results_table(rows)
    demo.table.write_text(results.as_markdown(), encoding="utf-8")
    console.print(results.as_rich())
    return demo._replace(seconds=time.perf_counter() - started)


def _length(steps: int) -> list[str]:
    return [f"trainer.max_steps={steps}", f"trainer.val_check_interval={max(1, steps // 4)}"]


def _train(experiment: str, run_dir: Path, overrides: list[str]) -> Row:
    """Train an experiment as `defeat-train` would; the row is named like the run's folder."""
    config = compose_config(
        "train", [f"+experiment={experiment}", text_override("run_dir", run_dir), *overrides]
    )
    keeper = KeepPredictions()
    outcome = train(config, [keeper])
    assert outcome.evaluation is not None
    return Row(run_dir.name, outcome.evaluation, outcome.parameters, outcome.seconds, keeper.predictions)


def _evaluate_teacher(weights: Path, run_dir: Path, overrides: list[str]) -> tuple[Row, Annotations]:
    """Evaluate the teacher on the students' validation images."""
    students = compose_config(
        "train", ["+experiment=scenes_plain", text_override("run_dir", run_dir), *overrides]
    )
    config = compose_config(
        "eval",
        [
            text_override("checkpoint", weights),
            text_override("run_dir", run_dir),
            "detector@student=scenes_teacher",
        ],
    )
    config.data = students.data
    config.trainer = students.trainer
    done = evaluate(config)
    return Row("teacher", done.evaluation, done.parameters, None, done.predictions), done.annotations
