"""The levels of a detector: their strides, their anchors, the extra ones, and the pooling from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from defeat.detectors.adapted import AlignedRoIAlign, Float32AnchorGenerator, LinearP6P7, ParallelRoIAlign
from defeat.errors import ConfigError

Sizes = Sequence[Sequence[float]]
Anchors = Literal["rounded", "float"]
Strides = Literal["derived", "fixed"]
RoIAlign = Literal["torchvision", "aligned"]
ExtraLevels = Literal["c5", "p5"]


def check_choice(key: str, value: str, choices: object) -> None:
    """Raise a :class:`~defeat.errors.ConfigError` where a setting is none of a Literal's values."""
    if value not in get_args(choices):
        raise ConfigError(f"{key}={value}: choose one of {', '.join(get_args(choices))}")


def strides_of_levels(returned_layers: Sequence[int], extra: int) -> list[int]:
    """Return the stride in pixels of each level: of the backbone's stages, and of ``extra`` ones above."""
    deepest = max(returned_layers)
    return [2 ** (layer + 1) for layer in (*returned_layers, *range(deepest + 1, deepest + 1 + extra))]


def anchor_generator(
    sizes: Sizes, ratios: Sequence[float], level_strides: Sequence[int], anchors: Anchors, strides: Strides
) -> Float32AnchorGenerator:
    """Make the anchors of a detector; see :mod:`defeat.detectors.builders` for the settings.

    Raises:
        ConfigError: an unknown choice, or sizes that do not fit the levels.
    """
    check_choice("anchors", anchors, Anchors)
    check_choice("strides", strides, Strides)
    if len(sizes) != len(level_strides):
        raise ConfigError(
            f"anchor_sizes has {len(sizes)} lists, but this detector has {len(level_strides)} levels "
            f"(strides {', '.join(map(str, level_strides))}): give one list per level"
        )
    if len({len(level) for level in sizes}) != 1:
        raise ConfigError("anchor_sizes must have the same number of sizes on every level")
    return Float32AnchorGenerator(
        tuple(tuple(level) for level in sizes),
        (tuple(ratios),) * len(sizes),
        rounded=anchors == "rounded",
        strides=level_strides if strides == "fixed" else None,
    )


def octave_sizes(strides: Sequence[int], anchors: Anchors) -> Sizes:
    """Return RetinaNet's anchor sizes of each level, 4 x stride x 2^(n/3); whole if anchors are rounded."""
    sizes = [[4 * stride * 2 ** (n / 3) for n in range(3)] for stride in strides]
    return [[int(size) for size in level] for level in sizes] if anchors == "rounded" else sizes


def check_scales(sizes: Sizes) -> None:
    """Check that every box belongs to a level of an FCOS: torchvision says nothing of those that do not.

    Raises:
        ConfigError: more than one size on a level, or a gap between levels.
    """
    if len(sizes[0]) != 1:
        raise ConfigError(f"anchor_sizes has {len(sizes[0])} sizes a level, but FCOS takes one")
    for (lower,), (upper,) in pairwise(sizes):
        if upper > 2 * lower:
            raise ConfigError(
                f"FCOS levels of size {lower} and {upper} leave a gap: boxes that reach {8 * lower} to "
                f"{4 * upper} pixels from a cell would be learnt by none; let each size be at most twice the "
                "one before (anchor_sizes, or returned_layers without a gap)"
            )


def extra_levels(
    channels: int, extra_levels_from: ExtraLevels, relu_before_p7: bool
) -> Callable[[int], LastLevelP6P7]:
    """Return what makes the levels P6 and P7, given the channels of the backbone's deepest stage.

    Raises:
        ConfigError: an unknown choice.
    """
    check_choice("extra_levels_from", extra_levels_from, ExtraLevels)
    block = LastLevelP6P7 if relu_before_p7 else LinearP6P7
    if extra_levels_from == "p5":
        on_p5 = block(channels, channels)  # before the backbone: seeds have always drawn its weights first
        return lambda deepest: on_p5

    def on_c5(deepest: int) -> LastLevelP6P7:
        levels = block(deepest, channels)
        levels.use_P5 = False  # torchvision goes by the channels, which may be equal
        return levels

    return on_c5


def roi_pool(strides: Sequence[int], roi_align: RoIAlign) -> ParallelRoIAlign:
    """Make the pooling from the maps of these strides.

    Raises:
        ConfigError: an unknown choice.
    """
    check_choice("roi_align", roi_align, RoIAlign)
    names = [str(i) for i in range(len(strides))]
    if roi_align == "aligned":
        return AlignedRoIAlign(names, 7, 0, strides=strides)
    return ParallelRoIAlign(names, 7, 2, strides=strides)
