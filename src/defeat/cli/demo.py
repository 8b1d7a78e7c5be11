"""``defeat-demo``: the main job on generated scenes, compared in a table and pictures."""

from __future__ import annotations

import shlex
from pathlib import Path

from omegaconf import DictConfig

from defeat.cli.launch import launch
from defeat.config import typed
from defeat.render import print_line


def main() -> None:
    """Entry point of the console script."""
    launch(run, "demo")


def run(config: DictConfig) -> None:
    """Run the demo and print where everything lies."""
    from rich.console import Console

    from defeat.demo import run_demo
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    console = Console()
    demo = run_demo(config, console)
    for name, path in (("detections", demo.detections), ("curves", demo.curves), ("table", demo.table)):
        print_line(console, f"{name:<11} {path}")
    print_line(console, f"dashboard   {shlex.join(['tensorboard', '--logdir', str(config.run_dir)])}")
    checkpoint = Path(config.run_dir, "DeFeat", "checkpoints", "best.ckpt")
    if checkpoint.is_file():
        print_line(console, f"export      defeat-export {typed('checkpoint', checkpoint)}")
    print_line(console, f"seconds     {demo.seconds:.0f}")
