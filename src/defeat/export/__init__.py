"""A trained student as files that need nothing of this project: weights, graphs, and what describes them."""

from defeat.export.student import TrainedStudent, read_student

__all__ = ["TrainedStudent", "read_student"]
