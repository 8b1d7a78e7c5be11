"""The changes that this project makes to modules of torchvision, each as a subclass in a file of its own.

====================  ==========================  ==========================================  ================
torchvision           here                        what is changed, and why                    upstream
====================  ==========================  ==========================================  ================
FrozenBatchNorm2d     HalfFrozenBatchNorm2d       Half precision stays half: under autocast   none known
                                                  its float32 output was kept for the
                                                  backward, beside the convolution's copy.
AnchorGenerator       Float32AnchorGenerator      Anchors stay float32 where features are     none known
                                                  half: in bfloat16 a coordinate above 1024
                                                  is a multiple of 8.
BoxCoder              Float32BoxCoder             Boxes are decoded in float32, likewise.     none known
BoxLinearCoder        Float32BoxLinearCoder       The same for FCOS.                          none known
GeneralizedRCNN-      PixelTransform              An image so long that nothing of its other  none known
Transform                                         side is left is stretched first;
                                                  torchvision fails.
MultiScaleRoIAlign    ParallelRoIAlign            Scales are given; torchvision infers them   vision issues
                                                  from the first batch and keeps them. All    3747, 4935 and
                                                  cores of a CPU pool; torchvision uses one.  6619
MultiScaleRoIAlign    AlignedRoIAlign             The same, sampled as other frameworks do.   none known
LastLevelP6P7         LinearP6P7                  No ReLU before P7, as in mmdetection.       none known
====================  ==========================  ==========================================  ================

In float32 all but the last two, and a Float32AnchorGenerator that is told otherwise, compute what torchvision
does, bit for bit, and parameters keep their names. Builders of this project construct them. :func:`adapt`
puts those of the same arithmetic into a detector that torchvision's own builders made.
"""

from defeat.detectors.adapted.adapt import adapt, adapt_inner_parts
from defeat.detectors.adapted.aligned_roi_align import AlignedRoIAlign
from defeat.detectors.adapted.float32_boxes import (
    Float32AnchorGenerator,
    Float32BoxCoder,
    Float32BoxLinearCoder,
)
from defeat.detectors.adapted.frozen_batch_norm import HalfFrozenBatchNorm2d
from defeat.detectors.adapted.linear_p6p7 import LinearP6P7
from defeat.detectors.adapted.parallel_roi_align import ParallelRoIAlign
from defeat.detectors.adapted.pixel_transform import PixelTransform

__all__ = [
    "AlignedRoIAlign",
    "Float32AnchorGenerator",
    "Float32BoxCoder",
    "Float32BoxLinearCoder",
    "HalfFrozenBatchNorm2d",
    "LinearP6P7",
    "ParallelRoIAlign",
    "PixelTransform",
    "adapt",
    "adapt_inner_parts",
]
