"""Lightning callbacks, each an entry of conf/callbacks."""

from defeat.training.callbacks.best_checkpoint import BestCheckpoint
from defeat.training.callbacks.dashboard import Dashboard
from defeat.training.callbacks.detections import KeepPredictions, SaveDetections
from defeat.training.callbacks.exact_resume import ExactResume
from defeat.training.callbacks.images_per_second import ImagesPerSecond
from defeat.training.callbacks.last_checkpoint import LastCheckpoint
from defeat.training.callbacks.measure_gradients import MeasureGradients
from defeat.training.callbacks.nonfinite import NonFinite
from defeat.training.callbacks.pictures import DrawPictures
from defeat.training.callbacks.profile import ProfileSteps
from defeat.training.callbacks.progress import ProgressBar
from defeat.training.callbacks.student_ema import StudentEMA
from defeat.training.callbacks.validation_charts import ValidationCharts

__all__ = [
    "BestCheckpoint",
    "Dashboard",
    "DrawPictures",
    "ExactResume",
    "ImagesPerSecond",
    "KeepPredictions",
    "LastCheckpoint",
    "MeasureGradients",
    "NonFinite",
    "ProfileSteps",
    "ProgressBar",
    "SaveDetections",
    "StudentEMA",
    "ValidationCharts",
]
