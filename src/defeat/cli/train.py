"""``defeat-train``: train or distil as configured, then say what came of it."""

from __future__ import annotations

import logging
import math

from omegaconf import DictConfig

from defeat.cli.launch import launch
from defeat.errors import ConfigError
from defeat.quiet import quiet
from defeat.training.run import Outcome, train
from defeat.training.summary import print_summary


def main() -> None:
    """Entry point of the console script."""
    launch(run, "train")


def run(config: DictConfig) -> float | None:
    """Train, print the summary, and give a sweeper the metric it asked for."""
    quiet()
    outcome = train(config)
    print_summary(outcome)
    return _metric(outcome, config.optimized_metric)


def _metric(outcome: Outcome, name: str | None) -> float | None:
    if name is None:
        return None
    if name not in outcome.metrics:
        if any(metric.startswith("val/") for metric in outcome.metrics):
            raise ConfigError(
                f"optimized_metric={name} was not logged; there are {', '.join(sorted(outcome.metrics))}"
            )
        logging.getLogger(__name__).warning("no validation took place: there is no %s to report", name)
        return None
    value = outcome.metrics[name]
    return None if math.isnan(value) else value
