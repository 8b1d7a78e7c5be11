"""Warnings of the libraries that say nothing to the user of this program, each with its reason."""

from __future__ import annotations

import logging
import warnings

REASONS = {
    r".*isinstance\(treespec, LeafSpec\).*": "Lightning against a newer torch; nothing to mend here",
    r".*does not have many workers.*": "the configuration sets num_workers on purpose",
    r".*[Ff]ound \d+ module\(s\) in eval mode.*": "the teacher is, always",
    r".*The number of training batches.*is smaller than the logging interval.*": "short runs are legitimate",
    r"The dirpath has changed from.*": "a run that is resumed has a folder of its own",
    r".*Checkpoint directory .* exists and is not empty.*": "resuming writes beside what is there",
    r".*litlogger.*": "an advertisement",
}
"""Message pattern to the reason why it is left out."""


def quiet() -> None:
    """Leave those out, and what the libraries say on the log that is of no use to the user."""
    for pattern in REASONS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # a table per validation, of its own
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.setup"):
        logging.getLogger(name).addFilter(_no_tips)


def _no_tips(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
