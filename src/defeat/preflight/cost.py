"""Estimate the memory and the time that the whole run will take."""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer

from defeat.io.text import counted
from defeat.memory import describe_memory
from defeat.preflight.finding import Finding, Problem
from defeat.preflight.step import Steps
from defeat.training.run import Run

CROWDED = 0.9
"""Share of a GPU's memory from which on a larger image than those of the first steps may not fit."""


class Plan(NamedTuple):
    """The length of the training that follows from the trainer's settings."""

    steps: float
    """Optimiser steps; inf if nothing but the user ends the training."""
    batches: float
    """Batches of each process, for all those steps."""
    validations: int
    val_images: int
    """Images of one validation, in each process."""


def plan(run: Run) -> Plan:
    """Work out the length of a run that begins at its first step."""
    trainer = run.trainer
    train, val = run.data.train_dataloader(), run.data.val_dataloader()
    world = trainer.world_size
    batches = max(1, _limited(len(train) // world, trainer.limit_train_batches))
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = min(epochs * per_epoch, math.inf if trainer.max_steps == -1 else trainer.max_steps)
    all_batches = steps / per_epoch * batches
    val_batches = _limited(math.ceil(len(val) / world), trainer.limit_val_batches)
    images = min(val_batches * (val.batch_size or 1), math.ceil(len(run.data.read("val").records) / world))
    return Plan(steps, all_batches, _validations(trainer, all_batches, batches), images)


def _limited(batches: int, limit: float) -> int:
    """Apply Lightning's limit: a number of batches, or a share of them."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _validations(trainer: Trainer, all_batches: float, per_epoch: int) -> int:
    interval = trainer.val_check_interval
    if isinstance(interval, float):
        interval = max(1, int(per_epoch * interval))
    if not isinstance(interval, int) or math.isinf(all_batches):
        return 0
    if trainer.check_val_every_n_epoch is None:
        return int(all_batches // interval)
    epochs = int(all_batches // per_epoch) // trainer.check_val_every_n_epoch
    return epochs * (per_epoch // interval)


def check_cost(run: Run, steps: Steps, image_seconds: float, batch_images: int) -> Finding:
    """Report memory and time of the steps, and what the run will take at that speed.

    Args:
        image_seconds: to decode one image, in one process.
        batch_images: of one process.
    """
    planned = plan(run)
    workers = run.data.train_dataloader().num_workers
    computed = median(steps.seconds[1:] or steps.seconds)
    # Worker processes decode while the model computes; without any, one waits for the other.
    decoded = batch_images * image_seconds
    batch = max(computed, decoded / workers) if workers else computed + decoded
    validation = planned.val_images * (steps.val_seconds + image_seconds / max(1, workers))
    whole = planned.batches * batch + planned.validations * validation
    speed = batch_images * run.trainer.world_size / batch
    summary = [
        describe_memory(steps.peak, run.device),
        *_largest_batch(run, steps),
        f"{batch:.3g} s a batch ({speed:.3g} images/s)",
        f"{counted(planned.validations, 'validations')} of {duration(validation)}",
        "no end is set" if math.isinf(whole) else f"{planned.steps:.0f} steps in about {duration(whole)}",
    ]
    problems = []
    if workers and decoded / workers > computed:
        problems.append(
            Problem(
                f"decoding a batch takes {decoded / workers:.3g} s with {workers} workers and computing it "
                f"{computed:.3g} s: the device will wait for images",
                "raise data.num_workers",
                severe=False,
            )
        )
    total = _device_memory(run.device)
    if steps.peak > CROWDED * total:
        problems.append(
            Problem(
                f"a step takes {steps.peak / 2**30:.1f} of the device's {total / 2**30:.1f} GiB: batches of "
                "larger images may not fit",
                "lower data.batch_size, or raise trainer.accumulate_grad_batches in its place",
                severe=False,
            )
        )
    figures = {
        "peak_bytes": steps.peak,
        "largest_batch": math.nan if steps.largest_batch is None else float(steps.largest_batch),
        "batch_seconds": batch,
        "compute_seconds": computed,
        "decode_seconds": decoded,
        "images_per_second": speed,
        "validation_seconds": validation,
        "validations": float(planned.validations),
        "steps": planned.steps,
        "whole_seconds": whole,
    }
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return Finding("cost", "; ".join(summary), problems, finite)


def _largest_batch(run: Run, steps: Steps) -> list[str]:
    """Say how many images fit, and how sure that is."""
    if steps.largest_batch is None:
        return []
    if run.device.type == "cuda":
        return [f"data.batch_size up to about {steps.largest_batch} fits, of images like these"]
    return [
        f"the free memory may do for data.batch_size={steps.largest_batch}, roughly: other programs share it"
    ]


def _device_memory(device: torch.device) -> float:
    """Bytes of a GPU; inf for what has no memory of its own."""
    if device.type != "cuda":
        return math.inf
    return float(torch.cuda.get_device_properties(device).total_memory)


def duration(seconds: float) -> str:
    """Two units, such as ``3 h 20 min``; tenths of a second below ten."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
