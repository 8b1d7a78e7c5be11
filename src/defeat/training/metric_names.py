"""Names under which losses and metrics are logged."""

from __future__ import annotations

from defeat.io.text import printable


def distilled_loss(name: str) -> str:
    """Return the name under which a loss of the distiller is logged."""
    return f"distill/{name}"


def class_metric(name: str) -> str:
    """Name the metric of a class so that every logger takes it, whatever the class is called."""
    # Lightning keeps "/dataloader_idx_" for itself, and files of loggers hold no halves of surrogate pairs.
    return f"val_AP_class/{printable(name).replace('/dataloader_idx_', '/dataloader idx ')}"
