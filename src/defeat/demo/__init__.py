"""The main job on generated scenes: a teacher, a plain student and a distilled student, compared."""

from defeat.demo.demo import Demo, run_demo
from defeat.demo.demo_teacher import SHIPPED_TEACHER, export_teacher

__all__ = ["SHIPPED_TEACHER", "Demo", "export_teacher", "run_demo"]
