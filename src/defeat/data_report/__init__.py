"""A data set looked at as a whole: figures, pictures, and what is probably wrong."""

from defeat.data_report.collect import DataReport, SplitReport, inspect_data
from defeat.data_report.pages import write_report

__all__ = ["DataReport", "SplitReport", "inspect_data", "write_report"]
