"""Distillation on a GPU: images/s, peak memory, the share of the device's arithmetic, and who waits for whom.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --batch 8 --precision bf16 --settings fast --profile profile.txt
    python benchmarks/gpu.py --tiny --device cpu --size 64 96 --batch 2 --rounds 2 --side 256 --compile

A table for each batch, precision and setting: the plain student, the distilled ones, and the ratio of each to
its floor, which is the sum of bare parts of ``step.py`` in the same alternating run. The peak is that of a
large matrix product in the precision of the case.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from case import CLASSES, TINY, Case, Kind, Step, Training, distilled, student_alone
from measure import Timed, alternate, heading, ratio, table, verdict
from memory import MIB, measure_step
from step import FEATURES, FLOOR, FULL, LEAN, Floor, count_flops
from torch.profiler import ProfilerActivity, profile

import defeat
from defeat.detectors.compiled_backbone import COMPILE_MODES, CompileMode
from defeat.training.module import DetectionModule
from defeat.warning_filters import filter_warnings

HALF = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

SETTINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "fast": ("channels_last=true", "optim.optimizer.fused=true", "trainer.benchmark=true"),
}
"""Overrides of the configuration."""

PARTS: dict[Kind, tuple[Sequence[str], float]] = {
    "features": (FEATURES, 1.05),
    "lean": (LEAN, 1.05),
    "full": (FULL, 1.10),
}
"""The floor of each distillation, and what is asked of its ratio to that."""

IMAGES_1X = 118_287 * 12
"""Images of COCO train2017 in 12 epochs."""

HOURS = 6.0
"""Asked of the distilled 1x run."""


def main(words: Sequence[str] | None = None) -> None:
    options = _options(words)
    filter_warnings()
    height, width = options.size
    pair = "tiny detectors" if options.tiny else f"{options.teacher} -> {options.student}"
    heading(
        f"Distillation on a GPU: {pair}, {height}x{width} pixels",
        device=options.device,
        packages=["lightning"],
    )
    for precision, settings, images in product(options.precision, options.settings, options.batch):
        print(f"#### {images} images, precision {precision}, settings {settings}\n", flush=True)
        try:
            _report(options, precision, settings, images)
        except torch.OutOfMemoryError:
            print("Out of memory.\n")
        gc.collect()
        torch.cuda.empty_cache()


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1333], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", nargs="+", type=int, default=[4, 8, 16], help="images")
    parser.add_argument("--boxes", type=int, default=10, help="of an image")
    parser.add_argument(
        "--precision", nargs="+", choices=HALF, default=["32", "bf16"], help="of all forwards"
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTINGS")
    parser.add_argument("--kinds", nargs="+", choices=PARTS, default=["features", "full"], metavar="KIND")
    parser.add_argument(
        "--compile", nargs="*", choices=COMPILE_MODES, default=["default", "reduce-overhead"], metavar="MODE"
    )
    parser.add_argument("--teacher", default="resnet152", help="backbone")
    parser.add_argument("--student", default="resnet50", help="backbone")
    parser.add_argument("--tiny", action="store_true", help="the smallest detectors, to try this script")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices that tell the device's peak")
    parser.add_argument("--profile", type=Path, help="file for the 20 operations that take longest")
    parser.add_argument("--overrides", nargs="+", default=[], help="of the configuration")
    return parser.parse_args(words)


def _report(options: argparse.Namespace, precision: str, settings: str, images: int) -> None:
    case = Case(
        tuple(options.size),
        images,
        options.boxes,
        device=options.device,
        half=HALF[precision],
        overrides=[
            f"teacher.model.backbone={options.teacher}",
            f"student.model.backbone={options.student}",
            *SETTINGS[settings],
            *(TINY if options.tiny else ()),
            *options.overrides,
        ],
    )
    torch.backends.cudnn.benchmark = case.config.trainer.benchmark
    floor = Floor(case)
    parts = {name: partial(FLOOR[name][1], floor) for kind in options.kinds for name in PARTS[kind][0]}
    trainings = _trainings(case, options.kinds, options.compile)
    for name, report in case.precision_reports.items():
        print(f"Teacher {name}: {report}.")
    flops = {name: count_flops(step) / images for name, step in _uncompiled(trainings).items()}
    timed = alternate({**parts, **trainings}, options.rounds, warmup=3, device=case.device)
    peaks = {name: measure_step(case, training).peak for name, training in trainings.items()}
    fastest = peak_flops(case, options.side, options.rounds)
    print(f"Products of {options.side}x{options.side} matrices: {fastest / 1e12:.3g} TFLOP/s.\n")
    print(_rows(options.kinds, timed, flops, peaks, fastest, images), "\n")
    print(_waits(case, trainings[options.kinds[-1]]), "\n")
    if options.profile:
        stem = f"{options.profile.stem}_{images}_{precision}_{settings}{options.profile.suffix}"
        path = options.profile.with_name(stem)
        path.write_text(_profiled(trainings[options.kinds[-1]], case.device))
        print(f"The 20 longest operations: {path}\n")


def _trainings(case: Case, kinds: Sequence[Kind], modes: Sequence[CompileMode]) -> dict[str, Training]:
    """The student alone, and each distillation with the teacher as built, cheaper, and compiled."""
    trainings = {"plain": student_alone(case)}
    for kind in kinds:
        trainings[kind] = distilled(case, kind)
        trainings[f"{kind}-auto"] = distilled(case, kind, "auto")
        for mode in modes:
            trainings[f"{kind}-auto-{mode}"] = compiled(case, kind, mode)
    return trainings


def compiled(case: Case, kind: Kind, mode: CompileMode) -> Training:
    """A distillation whose teacher is first made cheaper and then compiled."""
    teacher = copy.deepcopy(case.teacher_in("auto"))
    teacher.compile_backbone(mode)
    module = DetectionModule(
        case.student,
        CLASSES,
        teacher=teacher,
        distiller=case.distiller(kind),
    )
    return Training(case, module)


def _uncompiled(trainings: Mapping[str, Training]) -> dict[str, Training]:
    """Those whose arithmetic can be counted; compiling changes none of it."""
    return {name: own for name, own in trainings.items() if not name.endswith(COMPILE_MODES)}


def peak_flops(case: Case, side: int, rounds: int) -> float:
    """FLOP/s of a product of large matrices in the precision of the case, as its TF32 setting has it."""
    a, b = torch.randn(2, side, side, device=case.device, dtype=case.half or torch.float32).unbind(0)
    timed = alternate({"product": lambda: a @ b}, rounds, warmup=3, device=case.device)
    return 2 * side**3 / timed["product"].median


def _rows(
    kinds: Sequence[Kind],
    timed: Mapping[str, Timed],
    flops: Mapping[str, float],
    peaks: Mapping[str, int],
    fastest: float,
    images: int,
) -> str:
    rows = []
    for name in peaks:
        kind = next((own for own in kinds if name.split("-")[0] == own), None)
        base = f"{kind}-auto" if name.endswith(COMPILE_MODES) else name
        rate = images / timed[name].median
        row = [name, f"{timed[name].median * 1e3:.1f}", f"{timed[name].spread:.1%}", f"{rate:.1f}"]
        row += [f"{peaks[name] / MIB:.0f}", f"{flops[base] / 1e9:.4g}", f"{flops[base] * rate / fastest:.1%}"]
        hours = IMAGES_1X / rate / 3600
        row += [f"{hours:.2f}"]
        if kind is None:
            rows.append([*row, "", "", "", ""])
            continue
        parts, limit = PARTS[kind]
        value, spread = ratio([timed[name]], [timed[part] for part in parts])
        rows.append([*row, verdict(hours, HOURS), f"{value:.3f}", f"{spread:.1%}", verdict(value, limit)])
    header = ["step", "median ms", "spread", "images/s", "peak MiB", "GFLOP an image", "share of peak"]
    header += ["hours of 1x", "goal", "ratio to floor", "spread", "goal"]
    floors = [
        [part, f"{timed[part].median * 1e3:.1f}", f"{timed[part].spread:.1%}"]
        for part in FLOOR
        if part in timed
    ]
    return f"{table(header, rows)}\n\n{table(['part of the floor', 'median ms', 'spread'], floors)}"


def _waits(case: Case, step: Step) -> str:
    """Where a step waits for the GPU: in this project's code, which is asked not to, and in libraries."""
    if case.device.type != "cuda":
        return "Waiting is counted on a GPU alone."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        (one.filename, one.lineno) for one in caught if "synchronizing CUDA operation" in str(one.message)
    )
    home = str(Path(defeat.__file__).parent)
    ours = sum(count for (file, _), count in places.items() if file.startswith(home))
    rows = [[f"{_short(file)}:{line}", str(count)] for (file, line), count in places.most_common()]
    judged = verdict(ours, 0)
    return f"Waits for the GPU in a step: {places.total()}, of ours {ours} ({judged}).\n\n" + table(
        ["where", "times"], rows
    )


def _short(file: str) -> str:
    """Relative to the folder that modules are imported from."""
    roots = sorted((path for path in sys.path if path and file.startswith(path)), key=len)
    return file.removeprefix(roots[-1]).lstrip("/") if roots else Path(file).name


def _profiled(step: Callable[[], object], device: torch.device) -> str:
    """Table of the 20 operations of a step that take longest on the device."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=80))


if __name__ == "__main__":
    main()
