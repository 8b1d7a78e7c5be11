"""Pictures: detections side by side, and training curves."""

from defeat.visual.boxes import draw_boxes
from defeat.visual.side_by_side import side_by_side
from defeat.visual.training_curves import plot_curves, read_curve

__all__ = ["draw_boxes", "plot_curves", "read_curve", "side_by_side"]
