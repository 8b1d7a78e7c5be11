"""Build a run from its configuration without training it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig, OmegaConf

from defeat.config import build, build_factory, to_plain
from defeat.data import DetectionDataModule
from defeat.data.checks import crowding_problems, log_problems
from defeat.data.loader import auto_workers
from defeat.detectors import Detector
from defeat.distill import Distiller
from defeat.errors import ConfigError
from defeat.run.check import check_config, check_metrics
from defeat.run.check_schedule import schedule_problems
from defeat.run.check_trainer import check_trainer
from defeat.run.checkpoint_detector import described_by_weights
from defeat.run.find_checkpoint import find_checkpoint
from defeat.run.fit_to_data import fit_to_data
from defeat.run.hardware import keep_freed_memory, laid_like_parameters, lay_channels_last, set_hardware
from defeat.run.prepare_teacher import prepare_teacher
from defeat.run.pretrained_rates import pretrained_rates
from defeat.run.resume import Resumed, check_same, keep_weights, read_resumed
from defeat.run.trainer import build_trainer
from defeat.training.loggers import trackers
from defeat.training.module import DetectionModule
from defeat.training.run import Run

log = logging.getLogger(__name__)


def build_run(config: DictConfig, callbacks: Sequence[pl.Callback] = (), *, swept: bool = False) -> Run:
    """Build all parts of a run; nothing is trained, and nothing is written.

    The random state of the process is seeded on the way, and its hardware settings (TF32, memory) are made.

    Args:
        config: composed from conf/train.yaml; it is not changed.
        callbacks: further ones, beside the configured.
        swept: the run is a job of a sweep.

    Raises:
        DefeatError: anything in the configuration or the files it names that the user can correct. What the
            configuration alone shows is refused before any data is read, which can take minutes.
    """
    check_config(config)
    plain = to_plain(config)
    described = {role: described_by_weights(plain[role]) for role in ("student", "teacher")}
    config = OmegaConf.create({**plain, **described})
    trainer = build_trainer(config, callbacks)
    check_trainer(trainer, swept=swept, scheduled=config.optim.lr_schedule is not None)
    optimizer = laid_like_parameters(build_factory(config.optim.optimizer))
    lr_schedule = build_factory(config.optim.lr_schedule)
    resumed = _resumed(config, swept=swept)
    if resumed:
        config = keep_weights(config, resumed)
        trainer.ckpt_path = resumed.path
        if not config.force_resume:  # of another training the curves are others
            for tracker in trackers(trainer):
                tracker.go_on(resumed.service_runs)
    set_hardware(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = _read_data(config, trainer, resumed)
    if config.get("fit_to_data"):
        config = OmegaConf.create(fit_to_data(to_plain(config), data.read("train").records))
    if not resumed:
        images = len(data.read("train").records)
        log_problems("schedule", schedule_problems(config, images, trainer.world_size))
    student: Detector = build(config.student, classes=list(data.classes))
    teacher, distiller = _build_teacher(config, data.classes, student)
    if config.channels_last:
        lay_channels_last(student.model, distiller)
    provenance = _provenance(config, data, teacher, trainer.world_size, resumed)
    if resumed:
        check_same(resumed, {**provenance, "classes": list(data.classes)}, force=config.force_resume)
    # Not before the annotations are read, whose file takes more memory than what is kept of it.
    if config.keep_freed_memory:
        keep_freed_memory()
    frozen = prepare_teacher(teacher, student.model, data, trainer.strategy.root_device) if teacher else None
    module = DetectionModule(
        student.model,
        data.classes,
        optimizer=optimizer,
        lr_mult=pretrained_rates(student, config.optim.get("pretrained_lr_mult")),
        lr_schedule=lr_schedule,
        seed=config.seed,
        teacher=frozen,
        distiller=distiller,
        provenance=provenance,
        backend=config.evaluation.backend,
        max_dets=config.evaluation.max_dets,
    )
    return Run(
        provenance["config"], data, student, teacher, module, trainer, resumed.path if resumed else None
    )


def _read_data(config: DictConfig, trainer: pl.Trainer, resumed: Resumed | None) -> DetectionDataModule:
    """Read the training and validation splits; ``data.num_workers=auto`` is resolved in ``config``."""
    if config.data.get("num_workers") == "auto":
        on_gpu = trainer.strategy.root_device.type != "cpu"
        config.data.num_workers = auto_workers(max(1, trainer.world_size // trainer.num_nodes), gpu=on_gpu)
        log.info("data.num_workers=auto: %d", config.data.num_workers)
    data: DetectionDataModule = build(config.data)
    if resumed and data.division and (divided := resumed.provenance.get("divided")):
        data.division.take(divided)
    data.setup("fit")
    check_metrics(config, data.classes)
    log_problems(data.read("val").source, crowding_problems(data.read("val"), config.evaluation.max_dets))
    return data


def _resumed(config: DictConfig, *, swept: bool) -> Resumed | None:
    path = find_checkpoint(to_plain(config), swept=swept)
    return read_resumed(path) if path else None


def _build_teacher(
    config: DictConfig, classes: Sequence[str], student: Detector
) -> tuple[Detector | None, Distiller | None]:
    if config.distiller is None:
        return None, None
    teacher: Detector = build(config.teacher, classes=list(classes), teacher=True)
    distiller: Distiller = build(config.distiller, student=student.model, teacher=teacher.model)
    if not teacher.whole and distiller.needs_teacher_head:
        raise ConfigError(
            "the teacher's classification head is new (teacher.new_head=true) and has nothing to teach: "
            "leave the head term out with ~distiller.terms.head"
        )
    return teacher, distiller


def _provenance(
    config: DictConfig,
    data: DetectionDataModule,
    teacher: Detector | None,
    processes: int,
    resumed: Resumed | None,
) -> dict[str, Any]:
    """Collect, in plain containers, what the run's checkpoints say about how it was made."""
    return {
        "config": to_plain(config),
        "class_ids": list(data.class_ids),
        "teacher": {"source": teacher.source, "sha256": teacher.digest} if teacher else None,
        "data": data.fingerprints(),
        "divided": data.division and data.division.lists,
        "order": data.order(processes),
        "run": _identity(resumed),
    }


def _identity(resumed: Resumed | None) -> dict[str, Any]:
    """Tell the run from others, and which runs it goes on from, wherever its files are copied to."""
    before = (resumed.provenance.get("run") or {}) if resumed else {}
    chain = [*before.get("resumed_from", ()), *filter(None, [before.get("started")])]
    return {"started": datetime.now(UTC).isoformat(timespec="microseconds"), "resumed_from": chain}
