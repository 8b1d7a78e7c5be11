"""Warnings and log lines of the libraries that are of no use to the user of this program."""

from __future__ import annotations

import logging
import warnings

IGNORED = {
    r".*isinstance\(treespec, LeafSpec\).*": "Lightning meets a newer torch: nothing can be done here",
    r".*does not have many workers.*": "the configuration sets num_workers on purpose",
    r".*[Ff]ound \d+ module\(s\) in eval mode.*": "the teacher always is in eval mode",
    r".*The number of training batches.*is smaller than the logging interval.*": "short runs are legitimate",
    r".*Checkpoint directory .* exists and is not empty.*": "a resumed run writes beside what is there",
    r".*your dataloader is not resumable.*": "the sampler resumes the order of the images",
    r".*sync_dist=True.*": "the metrics are those of all processes before they are logged",
    r"The given buffer is not writable.*": "torch 2.11 reads its own programs so, and only reads them",
    r".*litlogger.*": "it is an advertisement",
}
"""Regular expression of a warning's message, and the reason to ignore it. The test suite ignores the same."""


def filter_warnings() -> None:
    """Ignore these warnings, and let Lightning's log go where the rest of the log goes."""
    for pattern in IGNORED:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it prints a table at every validation
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in ("utilities.rank_zero", "trainer.setup", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_informative)


def _is_informative(record: logging.LogRecord) -> bool:
    """Tell news from advertisements and from the remark, at every save, that it saves more than weights."""
    message = record.getMessage()
    return "Tip:" not in message and "`weights_only` was not set" not in message
