"""What happens when a loss is NaN or infinite: the training stops, or leaves the step out.

A run that stops leaves the batch behind, in ``<run folder>/nonfinite_step<N>.pt``. To see its losses again::

    saved = torch.load("nonfinite_step120.pt", weights_only=True)
    student.train()  # with the weights of last.ckpt, say; see defeat.detectors.load_detector_weights
    torch.manual_seed(saved["seed"])
    with capture(student) as seen:
        losses = student(to_unit_range(saved["images"]), saved["targets"])
    losses |= distiller(student, teacher, seen, saved["progress"])  # of a distilled run
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, cast, get_args

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from defeat.data import DetectionDataModule
from defeat.errors import ConfigError, DefeatError, StorageError
from defeat.io.atomic_write import replacing
from defeat.types import Batch, Target

if TYPE_CHECKING:
    from defeat.training.module import DetectionModule

log = logging.getLogger(__name__)

Action = Literal["stop", "skip"]


class NonFiniteError(DefeatError):
    """A loss, a gradient or a weight is NaN or infinite, and the training cannot go on."""


class NonFinite(Callback):
    """Watch the losses of every training step, and the weights of every checkpoint.

    A :class:`~defeat.training.module.DetectionModule` brings its own along and calls :meth:`watch` and
    :meth:`check_weights`. Several processes always decide alike: what one of them finds stops, or is left out
    by, all.

    ``stop`` costs next to nothing. The losses of a step are looked at when the next one begins, or before
    anything is made of the weights, a validation or a checkpoint. By then a GPU has long done the step's
    forward, and nothing later is waited for. The batch is held in memory until then.

    ``skip`` has to know before the optimiser steps: it waits for the GPU in every step, looks at the gradient
    as well, and copies the buffers of student and distiller, the statistics of BatchNorm, to put them back.
    What is left out is the whole optimiser step, with all the batches that are accumulated for it. Weights,
    buffers and the optimiser's state stay as they were; the step counts all the same for the learning rate
    and for the length of the training.

    Under ``16-mixed`` an infinite gradient is the gradient scaler's business, and neither stops nor counts.

    Args:
        folder: where the batch goes with which a training stops.
        action: ``stop`` or ``skip``.
        limit: of ``skip``: steps that may be left out over the whole run, resumed parts of it included; the
            next one stops it.

    Raises:
        ConfigError: an argument makes no sense.
        NonFiniteError: from the training.
    """

    def __init__(self, folder: str, *, action: Action, limit: int) -> None:
        if action not in get_args(Action):
            raise ConfigError(f"nonfinite.action={action} is neither stop nor skip")
        if limit < 1:
            raise ConfigError(f"nonfinite.limit must be at least 1, got {limit}")
        self.folder = Path(folder)
        self.action = action
        self.limit = limit
        self.skipped = 0
        """Steps left out so far."""
        self._watched: list[_Watched] = []
        self._buffers: list[Tensor] = []
        self._from_start: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.skipped = state_dict["skipped"]

    def watch(self, module: DetectionModule, batch: Batch, terms: Mapping[str, Tensor], loss: Tensor) -> None:
        """Take note of a batch's losses, within ``training_step``; nothing is waited for.

        Args:
            module: in training.
            batch: as the step sees it.
            terms: scalars by name, weighted.
            loss: their sum.
        """
        values = torch.stack([*terms.values(), loss]).detach().float()
        self._watched.append(
            _Watched(
                step=module.global_step,
                epoch=module.current_epoch,
                progress=module.progress(),
                seed=torch.initial_seed(),
                rates=[
                    group["lr"] for optimizer in module.trainer.optimizers for group in optimizer.param_groups
                ],
                batch=batch,
                names=(*terms, "loss"),
                values=values,
                verdict=_Verdict(~values.isfinite().all(), module.trainer),
            )
        )

    def check_weights(self, module: DetectionModule, state: Mapping[str, Tensor]) -> None:
        """Refuse weights that a loss or a gradient has spoilt; all processes call this together.

        Args:
            module: in training, or with a trainer that has ended one.
            state: what is about to be saved.

        Raises:
            NonFiniteError: names the first weight that is not finite.
        """
        if self.action == "stop":
            self._look(module)
        state = {name: value for name, value in state.items() if name not in self._from_start}
        spoilt = not _finite(state.values())
        if _Verdict(torch.tensor(spoilt, device=module.device), module.trainer).read():
            name = next(
                (name for name, value in state.items() if not _finite([value])), "a buffer of another process"
            )
            raise NonFiniteError(
                f"after {module.global_step} steps, epoch {module.current_epoch}: {name} is not finite, "
                "though the losses were: a gradient was NaN or infinite; no checkpoint is written, and the "
                f"last good one stays. {_advice(module, ())}"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave alone what the weight files brought: a half-precision file may hold infinite variances."""
        # Of processes that torchrun starts the first alone has a run folder.
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        state = pl_module.state_dict()
        self._from_start = {name for name, value in state.items() if not _finite([value])}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the losses of the step before; or keep what a step that is left out would spoil."""
        module = _ours(pl_module)
        if self.action == "stop":
            self._look(module)
        elif not self._watched:
            self._buffers = [buffer.detach().clone() for buffer in _buffers(module)]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Leave the step out if a loss or the gradient is not finite: gradients that are gone change nothing.

        Returning None from ``training_step`` would not do: Lightning refuses it with several processes, steps
        with what was accumulated before, and under ``16-mixed`` drops the step without a word.
        """
        if self.action == "stop":
            return
        module = _ours(pl_module)
        watched, self._watched = self._watched, []
        found = next((one for one in watched if one.verdict.read()), None)
        cause = _cause(found) if found else None
        # Processes have averaged their gradients: they find the same here.
        if found is None and not _has_scaler(trainer) and not _finite(_gradients(optimizer)):
            found, cause = watched[-1], "the gradient is not finite although the loss is"
        if found is not None:
            if self.skipped == self.limit:
                self._stop(module, found, cause)
            self._leave_out(module, found, cause, optimizer)
        module.log("train/skipped_steps", float(self.skipped), batch_size=1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last losses before a validation is spent on what came of them."""
        if self.action == "stop":
            self._look(_ours(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last losses."""
        if self.action == "stop":
            self._look(_ours(pl_module))

    def _look(self, module: DetectionModule) -> None:
        watched, self._watched = self._watched, []
        for one in watched:
            if one.verdict.read():
                self._stop(module, one, _cause(one))

    def _stop(self, module: DetectionModule, one: _Watched, cause: str | None) -> NoReturn:
        """Stop all processes with what the first of them says that has a cause; each saves its batch."""
        own = None
        if cause is not None:
            so_far = f"; steps left out before: {self.skipped}" if self.action == "skip" else ""
            where = self._save(module, one)
            own = f"{_describe(module, one, cause)}{so_far}; {where}. {_advice(module, _bad(one))}"
        raise NonFiniteError(_first(own, module.trainer))

    def _leave_out(
        self, module: DetectionModule, one: _Watched, cause: str | None, optimizer: Optimizer
    ) -> None:
        if _has_scaler(module.trainer) and getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused one: the scaler looks for what is not finite in the step alone, and must find something.
            for gradient in _gradients(optimizer):
                gradient.fill_(math.nan)
        else:
            optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(_buffers(module), self._buffers, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        text = _first(_describe(module, one, cause) if cause else None, module.trainer)
        if module.trainer.is_global_zero:
            log.warning("%s; the step is left out, %d of at most %d", text, self.skipped, self.limit)

    def _save(self, module: DetectionModule, one: _Watched) -> str:
        """Write the batch under a name of its own, and say where; the training's own error comes first."""
        content = {
            "step": one.step,
            "epoch": one.epoch,
            "rank": module.global_rank,
            "progress": one.progress,
            "seed": one.seed,
            "losses": dict(zip(one.names, one.values.tolist(), strict=True)),
            "image_ids": _image_ids(module.trainer, one.batch.targets),
            # copies: a tensor that is part of a larger one would be written with all of it
            "images": [image.cpu().clone() for image in one.batch.images],
            "targets": [
                {name: cast(Tensor, value).cpu().clone() for name, value in target.items()}
                for target in one.batch.targets
            ],
        }
        name = f"nonfinite_step{one.step}" + _of_process(module.trainer, "_rank")
        path = _unused(self.folder, name)
        try:
            with replacing(path) as part, part.open("wb") as file:
                torch.save(content, file)
        except (StorageError, OSError, RuntimeError) as error:  # torch's writer makes the last of a full disk
            return f"the batch could not be saved: {error}"
        return f"the batch is in {path}"


class _Verdict:
    """A flag of all processes together, on its way from their devices.

    Made where the flag is queued, it is read later without waiting for anything that was queued behind it: on
    CUDA it travels on a stream of its own.
    """

    def __init__(self, flag: Tensor, trainer: Trainer) -> None:
        self._flag = flag.int()
        self._arrived: torch.cuda.Event | None = None
        self._reduced: dist.Work | None = None
        if trainer.world_size > 1:
            self._reduced = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, async_op=True)
        if self._flag.is_cuda:
            stream = _side_stream(self._flag.device)
            stream.wait_stream(torch.cuda.current_stream(self._flag.device))
            with torch.cuda.stream(stream):
                self._wait_for_processes()
                self._flag.record_stream(stream)
                self._flag = self._flag.to("cpu", non_blocking=True)  # to pinned memory, so it does not block
                self._arrived = stream.record_event()

    def read(self) -> bool:
        """Whether the flag is up in any process."""
        self._wait_for_processes()
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._flag)

    def _wait_for_processes(self) -> None:
        if self._reduced is not None:
            self._reduced.wait()
            self._reduced = None


class _Watched(NamedTuple):
    """A batch, its losses and when they were."""

    step: int
    """Optimiser steps done before it."""
    epoch: int
    progress: float
    seed: int
    """Of the random numbers that the step drew."""
    rates: list[float]
    batch: Batch
    names: tuple[str, ...]
    """Of the terms, and ``loss`` for their sum."""
    values: Tensor
    """(T + 1,) float32."""
    verdict: _Verdict


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are, by one reduction over everything; waits for the device."""
    some = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return not some or bool(get_total_norm(some, math.inf).isfinite())


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _buffers(module: DetectionModule) -> Iterator[Tensor]:
    yield from module.student.buffers()
    if module.distiller is not None:
        yield from module.distiller.buffers()


def _has_scaler(trainer: Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _first(own: str | None, trainer: Trainer) -> str:
    """What the first process says that has something to say."""
    said: list[str | None] = [own]
    if trainer.world_size > 1:
        said = [None] * trainer.world_size
        dist.all_gather_object(said, own)
    return next(text for text in said if text is not None)


def _bad(one: _Watched) -> list[str]:
    """The terms that are not finite; ``loss`` where it is their sum alone."""
    finite = one.values.isfinite().tolist()
    bad = [name for name, fine in zip(one.names, finite, strict=True) if not fine]
    return bad[:-1] or bad


def _cause(one: _Watched) -> str | None:
    """Which losses of this process are not finite; None if another process has them."""
    values = dict(zip(one.names, one.values.tolist(), strict=True))
    bad = _bad(one)
    if not bad:
        return None
    if bad == ["loss"]:
        return f"the sum of the losses is {values['loss']}"
    cause = ", ".join(f"{name} is {values[name]}" for name in bad)
    if len(bad) == len(values) - 1 > 1:
        cause += " (as all of them: the step before may have spoilt the weights by its gradient)"
    return cause


def _describe(module: DetectionModule, one: _Watched, cause: str) -> str:
    values = ", ".join(f"{n} {v:.4g}" for n, v in zip(one.names, one.values.tolist(), strict=True))
    images = ", ".join(map(str, _image_ids(module.trainer, one.batch.targets)))
    rates = ", ".join(f"{rate:.4g}" for rate in dict.fromkeys(one.rates))
    process = _of_process(module.trainer, ", process ")
    return (
        f"step {one.step}, epoch {one.epoch}{process}: {cause}; losses {values}; images {images}; "
        f"learning rate {rates}"
    )


def _advice(module: DetectionModule, bad: Sequence[str]) -> str:
    """What to try, for the losses that are not finite."""
    trainer, distiller = module.trainer, module.distiller
    tries = ["a lower optim.optimizer.lr"]
    if not trainer.gradient_clip_val:
        tries.append("trainer.gradient_clip_val=5")
    if trainer.precision != "32-true":
        tries.append("trainer.precision=32-true")
    if distiller is not None:
        tries += [f"a lower {distiller.key(name)}" for name in bad if name in distiller.weights]
    return f"Try {', '.join(tries[:-1])} or {tries[-1]}" if len(tries) > 1 else f"Try {tries[0]}"


def _of_process(trainer: Trainer, before: str) -> str:
    """Which process this is, where there are several."""
    return f"{before}{trainer.global_rank}" if trainer.world_size > 1 else ""


def _image_ids(trainer: Trainer, targets: Sequence[Target]) -> list[int | str]:
    """The annotation file's ids; positions in the data set where the data are no data module of ours."""
    positions = [int(target["index"]) for target in targets]
    data = cast(Any, trainer).datamodule  # set by a connector, so untyped
    if not isinstance(data, DetectionDataModule):
        return list(positions)
    records = data.annotations["train"].records
    return [records[position].image_id for position in positions]


def _unused(folder: Path, name: str) -> Path:
    """A path where nothing is: a resumed run may come by the same step again."""
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(path for path in (folder / f"{one}.pt" for one in names) if not path.exists())


def _ours(module: LightningModule) -> DetectionModule:
    return cast("DetectionModule", module)
