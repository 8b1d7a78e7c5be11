"""``defeat-train``: train or distil as configured, then print what the run ended with."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping

from omegaconf import DictConfig

from defeat.cli.launch import launch
from defeat.cli.ranks import process_rank
from defeat.command_line import in_sweep
from defeat.errors import ConfigError


def main() -> None:
    """Entry point of the console script."""
    launch(run, "train")


def run(config: DictConfig) -> float | None:
    """Train, print the summary, and give a sweeper the metric it asked for."""
    from defeat.run.summary import print_summary
    from defeat.run.train import train
    from defeat.training.stopping import StoppedError, hand_on
    from defeat.warning_filters import filter_warnings

    filter_warnings()
    try:
        outcome = train(config, swept=in_sweep())
    except StoppedError as stopped:
        # As a shell reports a process that a signal ended: what started this one learns that it is not done.
        if process_rank().rank:
            sys.exit(0)  # one process speaks; Lightning would kill the others because of any other status
        print(stopped, file=sys.stderr)
        hand_on(stopped.signum)
        sys.exit(128 + stopped.signum)
    if config.preflight and config.preflight.only:
        return None
    print_summary(outcome)
    return _metric(outcome.metrics, config.optimized_metric)


def _metric(metrics: Mapping[str, float], name: str | None) -> float | None:
    if name is None:
        return None
    if name not in metrics:
        if any(metric.startswith("val/") for metric in metrics):
            raise ConfigError(
                f"optimized_metric={name} was not logged; there are {', '.join(sorted(metrics))}"
            )
        logging.getLogger(__name__).warning("no validation took place: there is no %s to report", name)
        return None
    value = metrics[name]
    return None if math.isnan(value) else value


if __name__ == "__main__":  # torchrun -m defeat.cli.train
    main()
