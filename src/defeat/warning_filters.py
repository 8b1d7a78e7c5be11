"""Warnings of the libraries that say nothing to the user of this program, each with its reason."""

from __future__ import annotations

import logging
import warnings

REASONS = {
    r".*isinstance\(treespec, LeafSpec\).*": "Lightning against a newer torch; nothing to mend here",
    r".*does not have many workers.*": "the configuration sets num_workers on purpose",
    r".*[Ff]ound \d+ module\(s\) in eval mode.*": "the teacher is, always",
    r".*The number of training batches.*is smaller than the logging interval.*": "short runs are legitimate",
    r".*Checkpoint directory .* exists and is not empty.*": "resuming writes beside what is there",
    r".*your dataloader is not resumable.*": "the order of images resumes itself",
    r".*sync_dist=True.*": "the figures are those of all processes before they are logged",
    r".*litlogger.*": "an advertisement",
}
"""Message pattern to the reason why it is left out."""


def filter_warnings() -> None:
    """Leave those out, and what the libraries say on the log that is of no use to the user."""
    for pattern in REASONS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # a table per validation, of its own
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        # To where the rest of the log goes, the run's log file too, rather than bare to standard error.
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in ("utilities.rank_zero", "trainer.setup", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not so are advertisements, and the word at every save that it is no save of weights alone."""
    message = record.getMessage()
    return "Tip:" not in message and "`weights_only` was not set" not in message
