"""From a checkpoint to files that need nothing of this project: written, checked, timed and described."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import interpolate

from defeat.config import to_plain
from defeat.data import worker_errors
from defeat.export.card import Card, CardKeys, model_card
from defeat.export.check import Check
from defeat.export.figures import Figures, read_figures
from defeat.export.formats import Format, formats
from defeat.export.keys import check_keys, format_names
from defeat.export.report import Exported, markdown
from defeat.export.sample import Sample, average_precision, generated_images, read_sample
from defeat.export.speed import Speed, measure
from defeat.export.student import TrainedStudent, read_student
from defeat.export.teacher import STUDENT, TEACHER, compare_ap, read_teacher, sentence
from defeat.io.atomic_write import write_text
from defeat.io.run_dirs import refuse_overwriting
from defeat.io.text import one_line
from defeat.run.provenance import versions

log = logging.getLogger(__name__)

PACKAGES = ("defeat", "torch", "torchvision", "onnx", "onnxruntime")

CLOSE = 0.001
"""Difference of AP up to which a file finds what the student does."""

GENERATED = 6
"""Generated pictures, where there are no others."""


@worker_errors()
def export(config: DictConfig) -> Exported:
    """Export as configured (conf/export.yaml) into ``config.run_dir``.

    What can be refused is refused before anything is written.

    Raises:
        DefeatError: anything in the configuration or the files it names that the user can correct.
    """
    plain = to_plain(config)
    check_keys(plain)
    folder = Path(plain["run_dir"])
    known = formats(nms=plain["nms"])
    chosen = {name: known[name] for name in format_names(plain)}
    others = [name for form in chosen.values() for name in (form.file, *form.others)]
    refuse_overwriting(*(folder / name for name in ("export.md", "README.md", *others)))
    student = read_student(plain["checkpoint"], ema=plain["ema"])
    for form in chosen.values():
        form.refuse(student)
    figures = read_figures(student, plain["evaluation"])
    sample = read_sample(config, student)
    images = sample.images if sample else generated_images(GENERATED, _longer_side(student))
    files = {name: folder / form.file for name, form in chosen.items()}
    for library in ("onnxscript", "onnx_ir"):  # each step of their optimiser
        logging.getLogger(library).setLevel(logging.WARNING)
    for name, form in chosen.items():
        log.info("writing %s", files[name])
        form.write(student, files[name])
    checks = {}
    if plain["verify"]:
        checks = {
            name: list(_compare(student, form, files[name], images, sample)) for name, form in chosen.items()
        }
    exported = Exported(student, folder, files, checks, None, None, [])
    if plain["timing"]:
        pictures = _of_one_size(images, plain["size"])
        exported = _timed(exported, chosen, figures, sample, pictures)
    write_text(folder / "export.md", markdown(exported))
    write_text(folder / "README.md", model_card(_card(exported, chosen, figures, CardKeys(**plain["card"]))))
    return exported


def _longer_side(student: TrainedStudent) -> int:
    transform: Any = student.detector.get_submodule("transform")
    return int(min(transform.max_size, 2 * transform.min_size[-1]))


def _compare(
    student: TrainedStudent, form: Format, path: Path, images: Sequence[Tensor], sample: Sample | None
) -> Iterator[Check]:
    """Compare a file with the student; a file that fails to run is one that differs."""
    try:
        yield from form.verify(student, path, images)
        # weights that agree to the bit need no such comparison
        if sample is not None and form.runtime is not None:
            yield _compare_ap(student, form.load(path), sample)
    except Exception as error:  # of the runtime
        log.debug("%s", path, exc_info=True)
        reason = one_line((str(error).splitlines() or [type(error).__name__])[0], 200)
        yield Check("running it", False, math.nan, math.nan, reason)


def _compare_ap(student: TrainedStudent, detector: nn.Module, sample: Sample) -> Check:
    expected = average_precision(student.detector, sample, student)
    found = average_precision(detector, sample, student)
    same = abs(found - expected) <= CLOSE or (math.isnan(found) and math.isnan(expected))
    note = f"AP {found:.4f}, {expected:.4f} in PyTorch"
    return Check(f"AP of {len(sample.images)} validation pictures", same, math.nan, math.nan, note)


def _of_one_size(images: Sequence[Tensor], size: Sequence[int] | None) -> list[Tensor]:
    """Eight of the images, resized to (height, width), or to that of the first."""
    height, width = size or images[0].shape[1:]
    chosen = [images[i % len(images)] for i in range(8)]
    resized = [interpolate(x[None].float(), (height, width), mode="bilinear")[0] for x in chosen]
    return [x.round().to(torch.uint8) for x in resized]


def _timed(
    exported: Exported,
    chosen: Mapping[str, Format],
    figures: Figures | None,
    sample: Sample | None,
    pictures: Sequence[Tensor],
) -> Exported:
    student, notes = exported.student, list[str]()
    teacher = read_teacher(student, notes)
    contenders: dict[str, nn.Module] = {STUDENT: student.detector}
    for name, form in chosen.items():
        if form.runtime is not None:
            contenders[f"student, {form.runtime}"] = form.load(exported.files[name])
    if teacher is not None:
        contenders[TEACHER] = teacher
    speed: Speed = measure(contenders, pictures, compiled=STUDENT)
    said = None
    if teacher is not None:
        said = sentence(speed, compare_ap(student, figures, teacher, sample))
    return exported._replace(speed=speed, sentence=said, notes=[*notes, *speed.notes])


def _card(exported: Exported, chosen: Mapping[str, Format], figures: Figures | None, keys: CardKeys) -> Card:
    files = {form.file: form.about for form in chosen.values()}
    files |= {name: about for form in chosen.values() for name, about in form.others.items()}
    files |= {"export.md": "how the files compare with the student, and their speed"}
    usage = {form.file: form.usage for form in chosen.values()}
    limits = list(_limits(exported, figures))
    return Card(
        exported.student,
        keys,
        figures,
        exported.speed,
        exported.sentence,
        files,
        usage,
        limits,
        versions(PACKAGES),
    )


def _limits(exported: Exported, figures: Figures | None) -> Iterator[str]:
    transform: Any = exported.student.detector.get_submodule("transform")
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        yield f"Every picture is resized to {height} x {width} pixels."
    else:
        yield (
            f"Pictures are resized until their shorter side has {transform.min_size[-1]} pixels, or their "
            f"longer one {transform.max_size}: small objects of a large picture become smaller still."
        )
    yield "Other objects than those of the classes above are background, or are taken for one of them."
    if figures is None:
        yield "How good it is has not been measured."
        return
    yield "The figures are of one data set; on pictures of another kind they can be far lower."
    unknown = [name for name, value in figures.per_class.items() if math.isnan(value)]
    if unknown:
        yield f"The validation has no object of {', '.join(unknown)}: how well they are found is not known."
    if not exported.passed:
        yield "A comparison of a file with the student has failed, see export.md."
