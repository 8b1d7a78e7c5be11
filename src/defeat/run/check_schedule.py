"""Tell of schedules that the trainer takes and that cannot be meant, once the data are known."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from defeat.types import Problem

RATE_PER_IMAGE = 0.02 / 16
"""Learning rate of SGD for each image of a step: linear in the batch (Goyal et al. 2017)."""

TOO_MUCH = 4
"""A rate is told if it is this many times the usual one."""


def schedule_problems(config: DictConfig, images: int, processes: int) -> list[Problem]:
    """Compare warm-up, milestones, validations and learning rate with the length of the training.

    Args:
        config: composed from conf/train.yaml.
        images: of the training split.
        processes: that train together.
    """
    trainer, schedule = config.trainer, config.optim.lr_schedule
    per_step = config.data.get("batch_size", 1) * processes * trainer.accumulate_grad_batches
    per_epoch = max(1, -(-images * config.data.get("repeat", 1) // per_step))
    lengths = [per_epoch * trainer.max_epochs] if (trainer.max_epochs or -1) >= 0 else []
    if trainer.max_steps >= 0:
        lengths.append(trainer.max_steps)
    problems = list(_rate_problems(config, per_step))
    if lengths and trainer.get("limit_train_batches") is None:
        steps = min(lengths)
        problems += _length_problems(config, steps, per_epoch)
        if schedule is not None:
            problems += _schedule_problems(schedule, steps, per_epoch)
    return problems


def _rate_problems(config: DictConfig, images: int) -> Iterator[Problem]:
    optimizer = config.optim.optimizer
    if optimizer["_target_"] != "torch.optim.SGD":
        return
    usual = RATE_PER_IMAGE * images
    if optimizer.lr >= TOO_MUCH * usual:
        yield Problem(
            f"a learning rate of {optimizer.lr:g} is for {optimizer.lr / RATE_PER_IMAGE:.0f} images a step, "
            f"and a step has {images}",
            f"set optim.optimizer.lr={usual:.2g}, or trainer.accumulate_grad_batches",
            severe=False,
        )


def _length_problems(config: DictConfig, steps: int, per_epoch: int) -> Iterator[Problem]:
    trainer = config.trainer
    first = None if trainer.get("limit_val_batches") == 0 else _first_validation(trainer, per_epoch)
    if steps and first is not None and steps < first:
        yield Problem(
            f"the training ends after {steps} steps, before its first validation after {first}: "
            "it leaves no AP and no best checkpoint",
            f"set trainer.check_val_every_n_epoch=null trainer.val_check_interval={max(1, steps // 4)}",
            severe=False,
        )


def _first_validation(trainer: DictConfig, per_epoch: int) -> int | None:
    """Return the steps until the first validation; None where it comes by time."""
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    before = (epochs - 1) * per_epoch if epochs else 0
    if interval is None:
        return before + per_epoch if epochs else None
    if isinstance(interval, float):
        return before + max(1, int(interval * per_epoch))
    return before + -(-interval // trainer.accumulate_grad_batches) if isinstance(interval, int) else None


def _schedule_problems(schedule: DictConfig, steps: int, per_epoch: int) -> Iterator[Problem]:
    warmup = OmegaConf.select(schedule, "warmup_steps") or 0
    if warmup and warmup >= steps:
        yield Problem(
            f"the warm-up of {warmup} steps does not end before the training, which has {steps}",
            f"set optim.lr_schedule.warmup_steps={max(1, steps // 10)}",
            severe=False,
        )
    milestones = OmegaConf.select(schedule, "milestones") or []
    late = [milestone for milestone in milestones if milestone * per_epoch >= steps]
    if late:
        length = steps / per_epoch
        good = ",".join(f"{length * share:.3g}" for share in (2 / 3, 11 / 12))
        yield Problem(
            f"milestones {list(late)} (epochs) lie beyond the end of the training, after {length:.3g} epochs",
            f"set optim.lr_schedule.milestones=[{good}]",
            severe=False,
        )
