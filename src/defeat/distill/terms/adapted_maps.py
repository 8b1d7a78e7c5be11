"""The levels that student and teacher share, and the layers between their channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from defeat.detectors.capture import DetectorSpec, Level
from defeat.distill.terms.base import DistillBatch, LevelPair, Maps, check_maps
from defeat.errors import ConfigError


class AdaptedMaps(nn.Module):
    """The levels that student and teacher share, by stride, and the layers between their channels.

    Args:
        student: what the student offers.
        teacher: what the teacher offers.
        maps: which maps of the two.
        adapter: builds the layer from student to teacher channels of one level.
        strides: only these levels; None means all that both have.

    Raises:
        ConfigError: no level in common, or a stride in ``strides`` that one of them lacks.
    """

    def __init__(
        self,
        student: DetectorSpec,
        teacher: DetectorSpec,
        maps: Maps,
        adapter: Callable[[int, int], nn.Module],
        strides: Sequence[int] | None,
    ) -> None:
        super().__init__()
        check_maps(maps)
        self.maps = maps
        self.levels = _common_levels(getattr(student, maps), getattr(teacher, maps), strides, maps)
        self.layers = nn.ModuleDict({str(s.stride): adapter(s.channels, t.channels) for s, t in self.levels})

    def student_maps(self, batch: DistillBatch) -> list[Tensor]:
        """Return the student's maps as they are, finest first, (B, C, H, W) each."""
        maps: Mapping[str, Tensor] = getattr(batch.student_captures, self.maps)
        return [maps[level.student.name] for level in self.levels]

    def forward(self, batch: DistillBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the adapted student map and the teacher map of each level, finest first, (B, C, H, W)
        each."""
        teacher_maps: Mapping[str, Tensor] = getattr(batch.teacher_captures, self.maps)
        for level, student_map in zip(self.levels, self.student_maps(batch), strict=True):
            adapted = self.layers[str(level.student.stride)](student_map)  # to the teacher's channels
            yield adapted, teacher_maps[level.teacher.name]


def _common_levels(
    student: Sequence[Level], teacher: Sequence[Level], strides: Sequence[int] | None, maps: str
) -> list[LevelPair]:
    # Of several maps of one stride the deepest counts.
    student_levels = {level.stride: level for level in student}
    teacher_levels = {level.stride: level for level in teacher}
    common = {
        stride: LevelPair(level, teacher_levels[stride])
        for stride, level in student_levels.items()
        if stride in teacher_levels
    }
    if strides is not None:
        lacking = sorted(set(strides) - set(common))
        if lacking:
            raise ConfigError(
                f"{maps} of strides {lacking} asked for, but student and teacher share {list(common)}"
            )
        return [pair for stride, pair in common.items() if stride in set(strides)]
    if not common:
        raise ConfigError(
            f"{maps} of student (strides {list(student_levels)}) and teacher (strides "
            f"{list(teacher_levels)}) have no stride in common"
        )
    return list(common.values())
