"""The loggers of conf/logger that show more of a run than its scalars, behind one seam."""

from defeat.training.loggers.mlflow import MLflow
from defeat.training.loggers.tensorboard import TensorBoard
from defeat.training.loggers.tracker import Tracker, trackers
from defeat.training.loggers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "Tracker", "WandB", "trackers"]
