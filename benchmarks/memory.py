"""Peak memory of a distillation step beside the student's own step and what the method cannot do without.

    python benchmarks/memory.py
    python benchmarks/memory.py --images 1 --explain full

On a CPU it is the peak of the bytes of all tensors that are alive, followed storage by storage through a
step after the first, which makes the optimiser's state; on a GPU what torch's allocator says. What the
kernels of a CPU need for themselves is not seen so (7 to 8 % more in torch's allocator at 400x600); the peak
of the resident memory of a fresh process stands beside it.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from case import Case, Training, distilled, student_alone
from measure import heading, table, verdict
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from defeat.distill import FeatureTerm
from defeat.memory import peak_memory
from defeat.training.module import DetectionModule
from defeat.warning_filters import filter_warnings

VARIANTS: dict[str, Callable[[Case], Training]] = {
    "student": student_alone,
    **{kind: partial(distilled, kind=kind) for kind in ("features", "lean", "full")},
    **{
        f"{kind}-auto": partial(distilled, kind=kind, precision="auto")
        for kind in ("features", "lean", "full")
    },
}

GOAL = 1.05
MIB = 2**20


class Storage(NamedTuple):
    """Memory that tensors share."""

    size: int
    """Bytes."""
    shape: tuple[int, ...]
    """Of the tensor it was made for."""
    dtype: torch.dtype
    made_by: str
    """The operation, or ``before`` where it was there at the start."""
    module: str
    """The innermost module in whose forward it was made; empty in a backward or between modules."""


class Live(TorchDispatchMode):
    """Follows which storages are alive, through all operations inside the ``with`` block.

    Args:
        before: tensors that are alive already.
        names: of modules, to tell where storages are made.
        stop: number of an operation, counted from 1, after which :attr:`found` is taken; None takes none.
    """

    def __init__(
        self, before: Iterable[Tensor], names: Mapping[nn.Module, str] | None = None, stop: int | None = None
    ) -> None:
        super().__init__()
        self.bytes = 0
        self.peak_at = 0
        """Number of the operation after which the peak was reached."""
        self.found: list[Storage] = []
        """What was alive after the operation ``stop``."""
        self._names = names or {}
        self._stop = stop
        self._operations = 0
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], Storage]] = {}
        self._inside: list[str] = []
        self._hooks: list[RemovableHandle] = []
        for tensor in before:
            self._meet(tensor, "before")
        self.peak = self.bytes

    def __enter__(self) -> Live:
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor, str(func))
        if self.bytes > self.peak:
            self.peak, self.peak_at = self.bytes, self._operations
        if self._operations == self._stop:
            self.found = [known for _, known in self._alive.values()]
        return result

    def _meet(self, tensor: Tensor, made_by: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        module = self._inside[-1] if self._inside and torch._C._current_graph_task_id() == -1 else ""
        known = Storage(storage.nbytes(), tuple(tensor.shape), tensor.dtype, made_by, module)
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key)), known
        self.bytes += known.size

    def _forget(self, key: int) -> None:
        self.bytes -= self._alive.pop(key)[1].size

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        self._inside.append(self._names.get(module, self._inside[-1] if self._inside else ""))

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside.pop()


class Measured(NamedTuple):
    """Bytes."""

    peak: int
    """Of one step."""
    held: int
    """Between two steps: weights, the optimiser's state, the batch."""
    needed: int
    """The teacher's weights and those of its tensors that losses compare; 0 without a teacher."""
    adapters: int
    """The adapters' weights, gradients and state: not in ``needed``."""


def measure_step(case: Case, training: Training) -> Measured:
    """The peak of a step that is not the first."""
    training()
    held = _bytes(_held(training))
    if case.device.type == "cuda":
        gc.collect()
        others = torch.cuda.memory_allocated(case.device) - held
        torch.cuda.reset_peak_memory_stats(case.device)
        training()
        peak = torch.cuda.max_memory_allocated(case.device) - others
    else:
        with Live(_held(training)) as live:
            training()
        peak = live.peak
    adapters = 0
    if training.module.distiller is not None:
        weights = list(training.module.distiller.parameters())
        adapters = _bytes(_learned(weights, training.optimizer)) + _bytes(weights)  # their gradients
    return Measured(peak, held, _needed(case, training.module), adapters)


def _held(training: Training) -> Iterator[Tensor]:
    """All tensors between two steps."""
    module, batch = training.module, training.case.batch
    yield from _learned(module.parameters(), training.optimizer)
    yield from module.buffers()
    yield from batch.images
    for target in batch.targets:
        yield from cast(dict[str, Tensor], target).values()


def _learned(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Parameters with the optimiser's state; their gradients are freed in every step."""
    for parameter in parameters:
        yield parameter
        yield from (x for x in optimizer.state.get(parameter, {}).values() if isinstance(x, Tensor))


def _needed(case: Case, module: DetectionModule) -> int:
    """Bytes of the teacher's weights and of what losses read of it in a step."""
    if module.teacher is None or module.distiller is None:
        return 0
    with case.autocast():
        taught = module.teacher.features(case.transformed()[0].tensors)
    read: list[Tensor] = []
    for term in module.distiller.terms.values():
        if isinstance(term, FeatureTerm):
            maps: Mapping[str, Tensor] = getattr(taught, term.maps)
            read += [maps[level.name] for _, level in term.adapters.levels]
    return _bytes([*module.teacher.parameters(), *module.teacher.buffers(), *read])


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of their storages, each counted once."""
    storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def explain(training: Training, largest: int) -> str:
    """Tables of what is alive at a step's peak: sums by where it was made, and the largest storages."""
    training()
    names = {module: name for name, module in training.module.named_modules()}
    with Live(_held(training)) as first:
        training()
    with Live(_held(training), names, stop=first.peak_at) as live:
        training()
    sums: Counter[str] = Counter()
    for one in live.found:
        sums["weights, states" if one.made_by == "before" else _place(one)] += one.size
    made = [one for one in live.found if one.made_by != "before"]
    made.sort(key=lambda one: one.size, reverse=True)
    rows = [
        [_mib(one.size), str(one.shape), str(one.dtype)[6:], one.made_by, one.module or "-"]
        for one in made[:largest]
    ]
    return "\n\n".join(
        [
            f"Alive at the peak of {_mib(first.peak)} MiB, operation {first.peak_at}:",
            table(["made in", "MiB"], [[place, _mib(size)] for place, size in sums.most_common()]),
            table(["MiB", "shape", "dtype", "by", "in"], rows),
        ]
    )


def _place(one: Storage) -> str:
    """Two steps down from the LightningModule, such as ``student.backbone``."""
    return ".".join(one.module.split(".")[:2]) or "backward, or between modules"


def _mib(size: float) -> str:
    return f"{size / MIB:.1f}"


def main(words: Sequence[str] | None = None) -> None:
    options = _options(words)
    filter_warnings()
    if options.resident:
        training = VARIANTS[options.resident](_case(options, options.images[0]))
        training()
        training()
        print(peak_memory(torch.device("cpu")))
        return
    for images in options.images:
        _report(options, images)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1333], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", nargs="+", type=int, default=[2], help="of the batch; a table for each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", choices=["bfloat16", "float16"], help="autocast to it; float32 otherwise")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument(
        "--explain", nargs="+", choices=VARIANTS, default=[], help="what is alive at its peak"
    )
    parser.add_argument("--largest", type=int, default=30, help="storages that --explain lists")
    parser.add_argument(
        "--rss", action=argparse.BooleanOptionalAction, default=True, help="resident memory too"
    )
    parser.add_argument(
        "--resident", choices=VARIANTS, help="print one variant's resident memory alone, bytes"
    )
    parser.add_argument("--overrides", nargs="+", default=[], help="of the configuration")
    return parser.parse_args(words)


def _case(options: argparse.Namespace, images: int) -> Case:
    half = options.half and getattr(torch, options.half)
    return Case(tuple(options.size), images, device=options.device, half=half, overrides=options.overrides)


def _report(options: argparse.Namespace, images: int) -> None:
    case = _case(options, images)
    height, width = options.size
    heading(
        f"Peak memory of a step: {height}x{width} pixels, {images} images, {options.half or 'float32'}, MiB",
        device=case.device,
    )
    student = measure_step(case, student_alone(case))
    peak, held = _mib(student.peak), _mib(student.held)
    rows = [["student", peak, held, *[""] * 5, _resident(options, images, "student")]]
    for name in options.variants:
        if name != "student":
            found = measure_step(case, VARIANTS[name](case))
            rows.append([name, *_row(student, found), _resident(options, images, name)])
    header = ["step", "peak", "between steps", "teacher and its maps", "ratio to student + these", "goal"]
    print(table([*header, "adapters", "ratio with adapters", "resident, own process"], rows), "\n")
    for name in options.explain:
        print(f"#### {name}\n\n{explain(VARIANTS[name](case), options.largest)}\n")


def _row(student: Measured, found: Measured) -> list[str]:
    value = found.peak / (student.peak + found.needed)
    with_adapters = found.peak / (student.peak + found.needed + found.adapters)
    return [
        _mib(found.peak),
        _mib(found.held),
        _mib(found.needed),
        f"{value:.3f}",
        verdict(value, GOAL),
        _mib(found.adapters),
        f"{with_adapters:.3f}",
    ]


def _resident(options: argparse.Namespace, images: int, name: str) -> str:
    """Peak of the resident memory of a process that takes two steps and does nothing else, MiB."""
    if not options.rss or options.device != "cpu":
        return ""
    words = ["--size", *map(str, options.size), "--images", str(images), "--resident", name]
    if options.half:
        words += ["--half", options.half]
    if options.overrides:
        words += ["--overrides", *options.overrides]
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    return _mib(float(done.stdout.split()[-1]))


if __name__ == "__main__":
    main()
