"""``defeat-eval``: figures of a checkpoint, a state_dict or a results file, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from defeat.cli.launch import launch
from defeat.config import typed
from defeat.errors import ConfigError
from defeat.io.atomic_write import write_text
from defeat.io.run_dirs import refuse_overwriting
from defeat.render import print_line


def main() -> None:
    """Entry point of the console script."""
    launch(run, "eval")


def run(config: DictConfig) -> float:
    """Evaluate, print the table, write evaluation.json into the run folder, return AP.

    Raises:
        DefeatError: see :func:`~defeat.run.evaluate.evaluate`; or the folder holds one already.
    """
    if config.data is not None and "_target_" in config.data and config.data.root is None:
        raise ConfigError("data.root not set: add data.root=<root>")
    from rich.console import Console

    from defeat.evaluation import evaluation_table, write_results
    from defeat.run.evaluate import evaluate
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    path = Path(config.run_dir) / "evaluation.json"
    results = path.with_name("results.json")
    refuse_overwriting(path, *([results] if config.save_results else []))
    evaluated = evaluate(config)
    content = {
        "source": evaluated.source,
        "data": evaluated.annotations.source,
        "split": config.split,
        **evaluated.evaluation.to_json(),
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
    if config.save_results:
        write_results(results, evaluated.annotations, evaluated.predictions)
    console = Console()
    console.print(evaluation_table(evaluated.evaluation, title=Path(evaluated.source).name))
    print_line(console, f"written to {path}")
    if config.checkpoint is not None and Path(config.checkpoint).suffix == ".ckpt":
        print_line(console, f"export      defeat-export {typed('checkpoint', config.checkpoint)}")
    return evaluated.evaluation.coco["AP"]
