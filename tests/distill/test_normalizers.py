"""Two processes under DDP train as one process does on the images of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from defeat.config import build
from defeat.data import collate
from defeat.detectors import FrozenTeacher, capture
from defeat.distill import Grids, random_mask
from defeat.distill.normalizers import global_normalizer, local_normalizer
from defeat.training.module import DetectionModule
from defeat.types import Target
from tests.helpers.agree import Kind, detector, lively, once
from tests.helpers.distillation import distiller_config
from tests.helpers.narrow import NARROW
from tests.helpers.ranks import start_two

OBJECTS = [[5, 3, 0, 0], [0, 1, 6, 2]]
"""Of the images of two global batches; the first half of each is the first process's."""
WHOLE, HALVES = slice(0, 4), (slice(0, 2), slice(2, 4))

EXACT: dict[str, Kind] = {
    "defeat": "frcnn",  # neck, backbone, and the head on the teacher's proposals
    "neck_all_cls": "frcnn",  # the pooled head
    "neck_random": "frcnn",
    "tadf": "frcnn",
    "cwd": "frcnn",
    "fgfi": "retinanet",
    "defeat_retinanet_head": "retinanet",
}
CASES: dict[str, Kind] = {**EXACT, "pkd": "frcnn"}
REDUCTIONS = {"defeat": 3, "neck_all_cls": 2, "fgfi": 1, "defeat_retinanet_head": 3, "cwd": 0, "pkd": 0}
"""Of a step: one for each term that counts anything."""


class Run(NamedTuple):
    """What two steps gave. Nothing was learned in them, so that both start from the same weights."""

    losses: list[dict[str, float]]
    """The student's own and the distiller's, as this process had them."""
    gradients: list[dict[str, Tensor]]
    """Of every parameter that trains, as the optimiser got them."""
    reductions: int
    """Over processes, of all steps."""


def sample(index: int, objects: int) -> tuple[Tensor, Target]:
    """All images have one size: padded to that of a larger neighbour, an image would have other losses."""
    draw = torch.Generator().manual_seed(index)
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8, generator=draw)
    corners = 24 * torch.rand(objects, 2, generator=draw)
    sides = 8 + 64 * torch.rand(objects, 2, generator=draw)
    return image, Target(
        boxes=torch.cat([corners, corners + sides], dim=1),
        labels=torch.randint(1, 3, (objects,), generator=draw),
        ignore=torch.zeros(objects, dtype=torch.bool),
        area=sides.prod(1),
        index=torch.tensor(index),
    )


SAMPLES = [[sample(10 * i + j, n) for j, n in enumerate(batch)] for i, batch in enumerate(OBJECTS)]


def loader(share: slice) -> DataLoader[Any]:
    own = [each for batch in SAMPLES for each in batch[share]]
    return DataLoader(own, batch_size=len(own) // len(SAMPLES), collate_fn=collate)  # type: ignore[arg-type]


def random_mask_by_image(grids: Grids) -> list[Tensor]:
    """Random cells that follow from the image, where they otherwise follow from the process and the batch."""
    masks = []
    for boxes in grids.boxes:
        torch.manual_seed(int(1000 * boxes.sum()))
        masks.append(random_mask(grids._replace(boxes=[boxes])))
    return [torch.cat(level) for level in zip(*masks, strict=True)]


@cache
def pair(kind: Kind) -> tuple[nn.Module, nn.Module]:
    """Student and teacher, the same in every process."""
    torch.manual_seed(1)
    # Batch normalisation would see the images of its process alone.
    settings = {"norm": "frozen", "min_size": 96, "max_size": 96, "backbone": NARROW}
    return detector(kind, "student", **settings), detector(kind, "teacher", **settings)


def module(name: str, config: DictConfig) -> DetectionModule:
    """A distiller of the configuration between the two, the same in every process."""
    student, teacher = pair(CASES[name])
    torch.manual_seed(2)
    with once():
        distiller: Any = lively(build(config)(student, teacher))
    if name == "neck_random":
        distiller.terms["neck"].mask = random_mask_by_image
    still = partial(torch.optim.SGD, lr=0.0)
    return DetectionModule(
        deepcopy(student), ["a", "b"], optimizer=still, teacher=FrozenTeacher(teacher), distiller=distiller
    )


class Record(pl.Callback):
    """Keep losses and gradients of every step."""

    def __init__(self, made: DetectionModule) -> None:
        self.losses: list[dict[str, float]] = []
        self.gradients: list[dict[str, Tensor]] = []
        made.student.register_forward_hook(lambda module, args, found: self.losses.append(numbers(found)))
        made.distiller.register_forward_hook(  # type: ignore[union-attr]
            lambda module, args, found: self.losses[-1].update(numbers(found))
        )

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        named = [(n, p.grad) for n, p in pl_module.named_parameters() if p.requires_grad]
        assert all(grad is not None for _, grad in named)
        self.gradients.append({name: grad.clone() for name, grad in named if grad is not None})


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


def in_order(n: int, device: torch.device | None = None) -> Tensor:
    """What torchvision's sampler takes for a random order, so that it draws by the image alone.

    What it draws must be as many from every image, too, which it is while there are enough negatives.
    """
    return torch.arange(n, device=device)


def entropy(scores: Tensor, labels: Tensor, **more: Any) -> Tensor:
    """Not in the precision of the labels, which is what torch takes, and float32 in torchvision's RPN."""
    return binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), **more)


def train(name: str, config: DictConfig, share: slice, processes: int = 1) -> Run:
    """Two steps in float64, as training makes them."""
    made = module(name, config)
    record = Record(made)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_steps=len(SAMPLES),
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    with (
        patch("torch.randperm", in_order),
        patch("torchvision.models.detection.rpn.F.binary_cross_entropy_with_logits", entropy),
        patch("defeat.training.module.to_unit_range", lambda images: [x.double() / 255 for x in images]),
        patch("defeat.distill.distiller.global_normalizer", side_effect=global_normalizer) as reductions,
    ):
        trainer.fit(made, loader(share), loader(share))
    return Run(record.losses, record.gradients, reductions.call_count)


def look_alone() -> dict[str, float]:
    """The losses of a batch, as a measurement before the training has them in one process."""
    made = module("defeat", distiller_config("defeat"))
    assert made.teacher is not None
    assert made.distiller is not None
    with patch("torch.randperm", in_order), capture(made.student) as captured:
        images, targets = zip(*SAMPLES[0][HALVES[0]], strict=True)
        made.student([x.double() / 255 for x in images], list(targets))
        return numbers(
            {n: x.sum() for n, x in made.distiller.level_losses(made.student, made.teacher, captured).items()}
        )


def _rank(rank: int, folder: str, configs: dict[str, DictConfig]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}  # for Lightning: we started the processes
    rendezvous = f"file://{folder}/rendezvous"
    wait = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=wait)
    runs = {name: train(name, config, HALVES[rank], processes=2) for name, config in configs.items()}
    # The other process goes on to the barrier: with a reduction in it, this would not end.
    alone = look_alone() if rank == 0 else None
    dist.barrier()
    normalizers = global_normalizer(torch.tensor([[0, 2 * rank, 3 + rank]]))
    dist.destroy_process_group()
    torch.save(
        ({name: tuple(run) for name, run in runs.items()}, alone, normalizers), Path(folder, f"{rank}.pt")
    )


class Rank(NamedTuple):
    runs: dict[str, Run]
    alone: dict[str, float] | None
    normalizers: Tensor


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    configs = {name: distiller_config(name) for name in CASES}
    start_two(_rank, str(folder), configs)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return [Rank({name: Run(*run) for name, run in runs.items()}, *rest) for runs, *rest in found]


def mean(runs: Sequence[Run]) -> Run:
    """Losses and gradients, averaged over processes, or over halves."""
    return Run(
        [
            {name: sum(one[name] for one in step) / len(runs) for name in step[0]}
            for step in zip(*(run.losses for run in runs), strict=True)
        ],
        [
            {name: sum(one[name] for one in step) / len(runs) for name in step[0]}  # type: ignore[misc]
            for step in zip(*(run.gradients for run in runs), strict=True)
        ],
        runs[0].reductions,
    )


def distance(found: Run, expected: Run) -> float:
    """The largest relative difference of a loss, or of a gradient by the largest element of its tensor."""
    differences = [
        abs(a[name] - b[name]) / max(abs(b[name]), 1e-3)
        for a, b in zip(found.losses, expected.losses, strict=True)
        for name in a.keys() | b.keys()
    ]
    differences += [
        (a[name] - b[name]).abs().max().item() / max(b[name].abs().max().item(), 1e-9)
        for a, b in zip(found.gradients, expected.gradients, strict=True)
        for name in a.keys() | b.keys()
    ]
    return max(differences)


@pytest.mark.parametrize("name", EXACT)
def test_losses_and_gradients_of_two_processes_are_those_of_one(name: str, ranks: list[Rank]) -> None:
    first, second = (rank.runs[name] for rank in ranks)
    one = train(name, distiller_config(name), WHOLE)
    found = distance(mean([first, second]), one)  # not within the assertion, which would print every gradient
    assert found < 1e-10
    for a, b in zip(first.gradients, second.gradients, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a.keys() | b.keys())
    # Numbers of objects do differ between the processes, or nothing would be shown.
    assert any(a != b for a, b in zip(first.losses, second.losses, strict=True))


@cache
def halves(name: str) -> list[Run]:
    """Each process's images in one process, where nothing is counted over processes."""
    return [train(name, distiller_config(name), half) for half in HALVES]


def test_the_mean_over_what_each_process_would_find_alone_is_another_loss(ranks: list[Rank]) -> None:
    together = mean([rank.runs["defeat"] for rank in ranks])
    alone = mean(halves("defeat"))
    found = distance(alone, together)
    assert found > 0.1
    for a, b in zip(alone.losses, together.losses, strict=True):
        changed = {name for name in a if a[name] != pytest.approx(b[name], rel=1e-2)}
        assert {"neck_object", "head_object", "backbone_object"} <= changed
        assert not any(name.startswith("loss_") for name in changed)  # the detector's own, samplers full


def test_correlations_are_those_of_each_process(ranks: list[Rank]) -> None:
    together = mean([rank.runs["pkd"] for rank in ranks])
    to_halves = distance(together, mean(halves("pkd")))
    to_whole = distance(together, train("pkd", distiller_config("pkd"), WHOLE))
    assert to_halves < 1e-10
    assert to_whole > 1e-3


def test_a_process_may_look_at_a_batch_alone(ranks: list[Rank]) -> None:
    expected = halves("defeat")[0].losses[0]
    assert ranks[0].alone == {
        name: pytest.approx(value, rel=1e-10)
        for name, value in expected.items()
        if not name.startswith("loss_")
    }


def test_processes_exchange_counts_once_a_term(ranks: list[Rank]) -> None:
    for rank in ranks:
        found = {name: rank.runs[name].reductions for name in REDUCTIONS}
        assert found == {name: len(SAMPLES) * count for name, count in REDUCTIONS.items()}


def test_divisors_are_shares_of_the_clamped_global_count(ranks: list[Rank]) -> None:
    for rank in ranks:
        assert torch.equal(rank.normalizers, torch.tensor([[0.5, 1.0, 3.5]]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_without_other_processes_the_count_is_ones_own(dtype: torch.dtype) -> None:
    counts = torch.tensor([[0, 1], [7, 300]], dtype=dtype)
    for normalizer in (local_normalizer, global_normalizer):
        found = normalizer(counts)
        assert found.dtype == dtype
        assert found.tolist() == [[1, 1], [7, 300]]
    assert counts[0, 0] == 0
