"""Losses, gradients and weights that are not finite; and that a seed decides all the rest."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from defeat.cli.error_messages import explain
from defeat.data import collate
from defeat.data.images import read_image
from defeat.detectors import FrozenTeacher, capture, faster_rcnn
from defeat.detectors.inference import to_unit_range
from defeat.distill import Distiller, FeatureTerm
from defeat.errors import ConfigError
from defeat.run.train import train
from defeat.training.callbacks.nonfinite import NonFinite, NonFiniteError
from defeat.training.module import DetectionModule
from defeat.types import Target
from tests.helpers.narrow import NARROW
from tests.helpers.ranks import start_two
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher

NAN, INF = math.nan, math.inf


class Spoil(pl.Callback):
    """Spoil a loss, or the gradient alone, of some training batches, counted from 0; and keep a diary."""

    def __init__(self, *batches: int, loss: str = "loss_box_reg", value: float = NAN, rank: int = 0) -> None:
        self.batches, self.loss, self.value, self.rank = set(batches), loss, value, rank
        self.batch = -1
        self.forwards = 0
        self.positions: list[list[int]] = []
        self.before: list[dict[str, Any]] = []
        self.after: list[dict[str, Any]] = []
        self.module: DetectionModule | None = None

    @property
    def due(self) -> bool:
        assert self.module is not None
        return self.batch in self.batches and self.module.global_rank == self.rank

    def on_train_start(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        self.module = pl_module
        for part in (pl_module.student, pl_module.distiller):
            if part is not None:
                part.register_forward_hook(self._forward)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.batch += 1
        self.positions.append([int(target["index"]) for target in batch.targets])
        self.before.append(state_of(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.after.append(state_of(trainer, pl_module))

    def on_after_backward(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        if self.due and self.loss == "gradient":
            first = next(p for p in pl_module.student.parameters() if p.grad is not None)
            first.grad.view(-1)[0] = self.value

    def _forward(self, part, arguments, output):  # type: ignore[no-untyped-def]
        if not part.training:
            return None
        self.forwards += not isinstance(part, Distiller)
        if not self.due or self.loss not in output:
            return None
        # A sum with infinity leaves the gradient finite; a product with NaN does not.
        spoilt = output[self.loss] * NAN if math.isnan(self.value) else output[self.loss] + self.value
        return {**output, self.loss: spoilt}


def state_of(trainer: pl.Trainer, module: DetectionModule) -> dict[str, Any]:
    """Copies of the weights, statistics included, and of the optimiser's state."""
    weights = {k: v for k, v in module.state_dict().items() if not k.startswith("teacher.")}
    return copy.deepcopy({"weights": weights, "optimizer": trainer.optimizers[0].state_dict()["state"]})


def same(one: Any, other: Any) -> bool:
    """Whether two nested containers hold the same bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def rows(run_dir: Path, column: str) -> list[float]:
    with (run_dir / "csv" / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def run(experiment: str, words: list[str], *callbacks: pl.Callback) -> None:
    train(tiny_config(experiment, words), callbacks)


def last(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def finite(state: dict[str, torch.Tensor]) -> bool:
    return all(bool(v.isfinite().all()) for v in state.values())


def test_stopped_it_says_step_losses_images_rate_and_what_to_try(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    spoil = Spoil(2, loss="neck_object")
    words = tiny(tmp_path, scenes, *tiny_teacher(teacher), "optim.lr_schedule.warmup_steps=0", steps=4)
    with pytest.raises(NonFiniteError) as caught:
        run("scenes", words, spoil)
    path = tmp_path / "nonfinite_step2.pt"
    saved = torch.load(path, weights_only=True)
    for part in (
        "step 2, epoch 1: neck_object is nan; losses loss_classifier ",
        "neck_object nan, neck_background ",
        ", loss nan; ",
        f"; images {', '.join(map(str, saved['image_ids']))}; learning rate 0.00075; ",
        f"; the batch is in {path}. Try ",
        "a lower optim.optimizer.lr",
        "a lower distiller.terms.neck.object_weight",
    ):
        assert part in str(caught.value)
    assert "clip" not in str(caught.value), "the experiment clips gradients already"
    assert "background_weight" not in str(caught.value)
    assert explain(caught.value, "train", []) == str(caught.value), "one line of the console script"
    assert spoil.forwards == 3, "no step is done after the one that went wrong"
    assert (saved["step"], saved["epoch"], saved["rank"], saved["progress"]) == (2, 1, 0, 0.5)
    bad = [name for name, value in saved["losses"].items() if not math.isfinite(value)]
    assert bad == ["neck_object", "loss"]
    assert last(tmp_path)["global_step"] == 2
    assert finite(last(tmp_path)["state_dict"])


def test_the_saved_images_are_those_of_the_ids(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        run("scenes_plain", tiny(tmp_path, scenes, "~logger"), spoil := Spoil(1))
    saved = torch.load(tmp_path / "nonfinite_step1.pt", weights_only=True)
    assert [int(target["index"]) for target in saved["targets"]] == spoil.positions[1]
    assert len(saved["images"]) == len(set(saved["image_ids"])) == 4
    for image, image_id in zip(saved["images"], saved["image_ids"], strict=True):
        drawn = read_image(scenes / "train" / f"{image_id - 1:06d}.png")
        assert torch.equal(image, drawn) or torch.equal(image, drawn.flip(2))


def test_the_losses_can_be_seen_again_from_the_saved_batch(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    class Overflow(Spoil):
        """Adapters so large that what they make of the features overflows, in the third batch."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            if self.batch == 1:
                with torch.no_grad():
                    pl_module.distiller.terms["neck"].adapters.layers["4"].weight.fill_(1e25)
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    spoil = Overflow()
    teaching = [*tiny_teacher(teacher), "distiller.terms.head.proposals=teacher"]
    with pytest.raises(NonFiniteError, match="step 2, epoch 1: neck_object is nan, neck_background is nan;"):
        run("scenes", tiny(tmp_path, scenes, *teaching, "~logger", steps=4), spoil)
    assert spoil.module is not None
    module = spoil.module
    module.load_state_dict(spoil.before[2]["weights"], strict=False)  # as it was before the step
    student, module_teacher, distiller = module.student, module.teacher, module.distiller
    assert module_teacher is not None
    assert distiller is not None

    saved = torch.load(tmp_path / "nonfinite_step2.pt", weights_only=True)
    student.train()
    torch.manual_seed(saved["seed"])
    with capture(student) as seen:
        losses = student(to_unit_range(saved["images"]), saved["targets"])
    losses |= distiller(student, module_teacher, seen, saved["progress"])
    saved["losses"].pop("loss")
    again = torch.stack(list(losses.values()))
    assert list(losses) == list(saved["losses"])
    torch.testing.assert_close(again.tolist(), list(saved["losses"].values()), rtol=0, atol=0, equal_nan=True)
    assert sorted(name for name, value in losses.items() if value.isnan()) == [
        "neck_background",
        "neck_object",
    ]


def test_the_last_step_is_looked_at_too(scenes: Path, tmp_path: Path) -> None:
    words = tiny(tmp_path, scenes, "~logger", "callbacks.last=null", steps=3)
    with pytest.raises(NonFiniteError, match="step 2, epoch 1: loss_box_reg is nan"):
        run("scenes_plain", words, Spoil(2))


def test_no_validation_is_spent_on_what_came_of_it(scenes: Path, tmp_path: Path) -> None:
    words = tiny(tmp_path, scenes, "~logger", "callbacks.last=null")
    with pytest.raises(NonFiniteError, match="step 1, epoch 0"):
        run("scenes_plain", words, Spoil(1))
    assert not (tmp_path / "detections.safetensors").exists()


def test_no_checkpoint_is_made_of_it(scenes: Path, tmp_path: Path) -> None:
    """Asked for within the step, before anything else has looked."""

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    with pytest.raises(NonFiniteError, match="step 1, epoch 0: loss_box_reg is inf"):
        run("scenes_plain", tiny(tmp_path, scenes, "~logger"), Spoil(1, value=INF), Save())
    assert (tmp_path / "1.ckpt").exists()
    assert not (tmp_path / "2.ckpt").exists()


def test_nothing_is_overwritten(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "nonfinite_step0.pt").write_text("mine")
    with pytest.raises(NonFiniteError, match=r"nonfinite_step0_2\.pt"):
        run("scenes_plain", tiny(tmp_path, scenes, "~logger"), Spoil(0))
    assert (tmp_path / "nonfinite_step0.pt").read_text() == "mine"
    assert torch.load(tmp_path / "nonfinite_step0_2.pt", weights_only=True)["step"] == 0


def test_a_batch_that_cannot_be_saved_does_not_hide_the_cause(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = tiny(tmp_path, scenes, "~logger", f"callbacks.nonfinite.folder={tmp_path}/file/folder")
    with pytest.raises(NonFiniteError, match=r"step 0.*loss_box_reg is nan.*the batch could not be saved: "):
        run("scenes_plain", words, Spoil(0))


def test_infinity_in_the_sum_alone_is_found(scenes: Path, tmp_path: Path) -> None:
    class Large(Spoil):
        """Two losses that are finite and whose sum is not."""

        def _forward(self, part, arguments, output):  # type: ignore[no-untyped-def]
            if not part.training:
                return None
            return {name: value * 0 + 3e38 for name, value in output.items()}

    with pytest.raises(NonFiniteError, match="step 0, epoch 0: the sum of the losses is inf"):
        run("scenes_plain", tiny(tmp_path, scenes, "~logger"), Large())


def test_a_gradient_that_is_nan_spoils_no_checkpoint(scenes: Path, tmp_path: Path) -> None:
    kept: list[bytes] = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            path = tmp_path / "checkpoints" / "last.ckpt"
            kept.append(path.read_bytes() if path.exists() else b"")

    words = tiny(tmp_path, scenes, "~logger", steps=4)
    with pytest.raises(NonFiniteError) as caught:
        run("scenes_plain", words, Spoil(3, loss="gradient"), Keep())
    assert "after 4 steps, epoch 1: student." in str(caught.value)
    assert "a gradient was NaN or infinite" in str(caught.value)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == kept[3]
    assert last(tmp_path)["global_step"] == 2
    assert finite(last(tmp_path)["state_dict"])


def test_what_a_weight_file_brought_is_no_fault_of_the_training(scenes: Path, tmp_path: Path) -> None:
    class Overflow(pl.Callback):
        """As a float16 file leaves a variance that did not fit."""

        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            pl_module.get_buffer("student.backbone.body.bn1.running_var")[0] = torch.inf

    run("scenes_plain", tiny(tmp_path, scenes), Overflow())
    assert last(tmp_path)["global_step"] == 2


def test_weights_that_a_gradient_spoilt_are_named_as_a_cause(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 3.* is nan \(as all of them: the step before"):
        run("scenes_plain", tiny(tmp_path, scenes, "~logger", steps=4), Spoil(2, loss="gradient"))


@pytest.mark.parametrize(
    ("loss", "value", "optim"),
    [
        ("loss_box_reg", NAN, "adamw"),
        ("loss_box_reg", INF, "sgd_1x"),
        ("gradient", NAN, "sgd_1x"),
        ("gradient", INF, "adamw"),
    ],
)
def test_a_skipped_step_changes_nothing_but_the_count(
    loss: str, value: float, optim: str, scenes: Path, tmp_path: Path
) -> None:
    spoil = Spoil(1, loss=loss, value=value)
    words = tiny(tmp_path, scenes, "callbacks.nonfinite.action=skip", f"optim={optim}", steps=3)
    run("scenes_plain", words, spoil)
    assert spoil.before[1]["optimizer"], "there are moments that could change"
    assert same(spoil.after[1], spoil.before[1])
    for step in (0, 2):
        assert not same(spoil.after[step]["weights"], spoil.before[step]["weights"])
    assert rows(tmp_path, "train/skipped_steps") == [0, 1, 1]
    assert last(tmp_path)["global_step"] == 3
    rates = rows(tmp_path, "lr-AdamW" if optim == "adamw" else "lr-SGD")
    assert rates[0] < rates[1] < rates[2], "the schedule goes on"


def test_a_skipped_step_is_warned_of_in_a_line(
    scenes: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = tiny(tmp_path, scenes, *tiny_teacher(teacher), "~logger", "callbacks.nonfinite.action=skip")
    run("scenes", words, Spoil(1, loss="head_object"))
    (line,) = [r.getMessage() for r in caplog.records if r.name == "defeat.training.callbacks.nonfinite"]
    assert "step 1, epoch 0: head_object is nan; losses " in line
    assert line.endswith("; the step is left out, 1 of at most 10")


def test_what_a_forward_did_to_batchnorm_is_undone(scenes: Path, tmp_path: Path) -> None:
    class Statistics(Spoil):
        """As if the activations had overflowed; it may not be done before the backward, which needs them."""

        def on_after_backward(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
            if self.due:
                layers = [m for m in pl_module.student.modules() if hasattr(m, "running_mean")]
                layers[0].running_mean.fill_(NAN)

    spoil = Statistics(1)
    run("scenes_plain", tiny(tmp_path, scenes, "~logger", "callbacks.nonfinite.action=skip", steps=3), spoil)
    assert same(spoil.after[1], spoil.before[1])
    assert finite(last(tmp_path)["state_dict"])


@pytest.mark.parametrize("batch", [2, 3])
def test_of_accumulated_gradients_the_whole_step_is_left_out(
    batch: int, scenes: Path, tmp_path: Path
) -> None:
    spoil = Spoil(batch, value=INF)  # which leaves the gradient finite
    more = ("callbacks.nonfinite.action=skip", "trainer.accumulate_grad_batches=2", "data.batch_size=1")
    run("scenes_plain", tiny(tmp_path, scenes, *more, steps=3), spoil)
    assert len(spoil.before) == 6
    assert same(spoil.after[3], spoil.before[2])
    for first in (0, 4):
        assert not same(spoil.after[first + 1]["weights"], spoil.before[first]["weights"])
    assert rows(tmp_path, "train/skipped_steps") == [0, 1, 1]


def test_past_the_limit_it_stops_all_the_same(scenes: Path, tmp_path: Path) -> None:
    words = tiny(
        tmp_path, scenes, "callbacks.nonfinite.action=skip", "callbacks.nonfinite.limit=2", "~logger", steps=6
    )
    with pytest.raises(NonFiniteError, match=r"step 4.*; steps left out before: 2; the batch"):
        run("scenes_plain", words, Spoil(0, 2, 4))
    assert (tmp_path / "nonfinite_step4.pt").exists()
    assert last(tmp_path)["global_step"] == 4


def test_a_resumed_run_counts_on(scenes: Path, tmp_path: Path) -> None:
    more = (
        "callbacks.nonfinite.action=skip",
        "callbacks.nonfinite.limit=1",
        "~logger",
        "trainer.max_steps=4",
    )
    with pytest.raises(NonFiniteError, match="step 3"):
        run("scenes_plain", tiny(tmp_path / "first", scenes, *more), Spoil(1, 3))
    words = tiny(tmp_path / "on", scenes, *more, f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt")
    with pytest.raises(NonFiniteError, match=r"step 2.*; steps left out before: 1; the batch"):
        run("scenes_plain", words, Spoil(0))


def test_a_finite_run_is_the_same_whatever_the_action(scenes: Path, tmp_path: Path) -> None:
    found = []
    for name, word in (
        ("stop", "callbacks.nonfinite.action=stop"),
        ("skip", "callbacks.nonfinite.action=skip"),
        ("none", "callbacks.nonfinite=null"),
    ):
        run("scenes_plain", tiny(tmp_path / name, scenes, "~logger", word))
        found.append(last(tmp_path / name))
    assert same(found[0]["state_dict"], found[1]["state_dict"])
    assert same(found[0]["state_dict"], found[2]["state_dict"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("action=ignore", "callbacks.nonfinite.action=ignore is neither stop nor skip"),
        ("limit=0", "at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    word: str, message: str, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run("scenes_plain", tiny(tmp_path, scenes, f"callbacks.nonfinite.{word}"))


SMALL = {"backbone": NARROW, "min_size": 32, "max_size": 32, "box_head_channels": 16, "fpn_channels": 8}


def small(**settings: Any) -> DetectionModule:
    """A student that a teacher of 16 channels teaches by the neck."""
    torch.manual_seed(0)
    student = faster_rcnn(3, **SMALL, norm="batch", trainable_layers=5)
    teacher = faster_rcnn(3, **{**SMALL, "fpn_channels": 16})
    term = partial(FeatureTerm, object_weight=1.0, background_weight=1.0)
    return DetectionModule(
        student,
        ["a", "b"],
        optimizer=partial(torch.optim.AdamW, lr=1e-3, **settings),
        teacher=FrozenTeacher(teacher),
        distiller=Distiller(student, teacher, terms={"neck": term}),
    )


def images(n: int) -> DataLoader[Any]:
    """Noise with a box."""
    generator = torch.Generator().manual_seed(0)

    def sample(i: int) -> tuple[torch.Tensor, Target]:
        target = Target(
            boxes=torch.tensor([[4.0, 4, 40, 40]]),
            labels=torch.tensor([1 + i % 2]),
            ignore=torch.tensor([False]),
            area=torch.tensor([36.0 * 36]),
            index=torch.tensor(i),
        )
        return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator), target

    return DataLoader([sample(i) for i in range(n)], batch_size=2, collate_fn=collate)  # type: ignore[arg-type]


def trainer_of(folder: Path, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu", enable_checkpointing=False, default_root_dir=folder, **quiet, **settings
    )


class Scaled(MixedPrecision):
    """Scales gradients as float16 needs it, and computes in float32, which is much faster on a CPU."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        super().__init__("16-mixed", "cpu", scaler)

    def autocast_context_manager(self) -> Any:
        return nullcontext()


NO_VALIDATION = "ignore:You defined a `validation_step` but have no `val_dataloader`"


@pytest.mark.filterwarnings(NO_VALIDATION)
@pytest.mark.parametrize("action", ["stop", "skip"])
def test_what_the_gradient_scaler_handles_is_left_to_it(action: str, tmp_path: Path) -> None:
    module, spoil = small(), Spoil(0, 1, 2, loss="gradient", value=INF)
    nonfinite = NonFinite(str(tmp_path), action=action, limit=1)  # type: ignore[arg-type]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**3)
    trainer = trainer_of(
        tmp_path,
        max_steps=3,
        callbacks=[spoil, nonfinite],
        plugins=[Scaled(scaler)],
    )
    trainer.fit(module, images(6))
    assert scaler.get_scale() == 1.0, "each gradient was infinite"
    assert nonfinite.skipped == 0
    assert not spoil.after[-1]["optimizer"]


@pytest.mark.filterwarnings(NO_VALIDATION)
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_steps_are_left_out_too(fused: bool, tmp_path: Path) -> None:
    module, spoil = small(fused=fused), Spoil(1, loss="neck_object", value=INF)
    nonfinite = NonFinite(str(tmp_path), action="skip", limit=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trainer_of(
        tmp_path,
        max_steps=3,
        callbacks=[spoil, nonfinite],
        plugins=[Scaled(scaler)],
    ).fit(module, images(6))
    assert nonfinite.skipped == 1
    assert same(spoil.after[1], spoil.before[1])
    assert not same(spoil.after[2]["weights"], spoil.before[2]["weights"])


def _process(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "1",
    }
    found: dict[str, Any] = {}
    for action in ("skip", "stop"):
        module = small()
        nonfinite = NonFinite(folder, action=action, limit=1)  # type: ignore[arg-type]
        spoil = Spoil(1, loss="neck_object", rank=1)
        # A process that waits for another in vain gives up soon.
        strategy = DDPStrategy(timeout=timedelta(seconds=60))
        watching = [spoil, nonfinite]
        trainer = trainer_of(Path(folder), max_steps=3, strategy=strategy, devices=2, callbacks=watching)
        try:
            trainer.fit(module, images(12))
        except NonFiniteError as error:
            found["error"] = str(error)
        else:
            found["skipped"] = nonfinite.skipped
            found["unchanged"] = [
                same(a["weights"], b["weights"]) for a, b in zip(spoil.after, spoil.before, strict=True)
            ]
            found["sum"] = sum(p.double().sum().item() for p in module.student.parameters())
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_processes_decide_alike_what_one_of_them_finds(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_two(_process, str(tmp_path), port)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["skipped"] == 1
    assert first["unchanged"] == [False, True, False]
    assert "step 1, epoch 0, process 1: neck_object is nan" in first["error"]
    assert f"the batch is in {tmp_path}/nonfinite_step1_rank1.pt" in first["error"]
    assert [p.name for p in tmp_path.glob("nonfinite*")] == ["nonfinite_step1_rank1.pt"]


@pytest.fixture
def _as_before() -> Iterator[None]:
    """Lightning sets it for the process."""
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("_as_before")
def test_a_seed_decides_weights_moments_and_curves(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    more = ["trainer.deterministic=true", "distiller.terms.head.proposals=teacher"]
    found, curves = [], []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        run("scenes", tiny(tmp_path / name, scenes, *tiny_teacher(teacher), *more, f"seed={seed}", steps=3))
        content = last(tmp_path / name)
        found.append([content["state_dict"], content["optimizer_states"], content["lr_schedulers"]])
        with (tmp_path / name / "csv" / "metrics.csv").open() as file:
            lines = [
                {k: v for k, v in row.items() if "images_per_s" not in k} for row in csv.DictReader(file)
            ]
        curves.append(lines)
    assert len(curves[0]) >= 3
    assert same(found[0], found[1])
    assert curves[0] == curves[1]
    assert not same(found[0][0], found[2][0])
    assert curves[0] != curves[2]
