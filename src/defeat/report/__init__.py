"""Runs compared: figures over seeds, differences on the same images, cost, kinds of errors."""

from defeat.report.report import make_report

__all__ = ["make_report"]
