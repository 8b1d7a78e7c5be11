"""A training that is killed again and again (SIGKILL) ends as the one that never was.

`make test-kills` runs it alone and prints its counts, which docs/reliability.md repeats.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import time
from collections import Counter
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from defeat.config import compose_config
from defeat.run.train import train
from tests.helpers.tiny import tiny, tiny_teacher

KILLS = 60
STEPS = 150
INTERVAL = 3
"""Optimiser steps between two saves."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of generated scenes with more images than those of all tests."""
    return tmp_path_factory.mktemp("images")


class Tell(pl.Callback):
    """Tell another process how many steps are done."""

    def __init__(self, steps: Synchronized[int]) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.steps.value = trainer.global_step


def work(words: list[str], steps: Synchronized[int]) -> None:
    """What is killed: a whole run, as the console script makes it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    train(compose_config("train", words), [Tell(steps)])


def newest(runs: Path) -> Path | None:
    return max(runs.glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime, default=None)


def wait_for_write(run_dir: Path, process: Any, rng: random.Random) -> None:
    """Until a checkpoint is being written, and then a little."""
    while process.is_alive() and not list(run_dir.glob("checkpoints/*.part")):
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.01))


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(
    images: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["defeat.run.train", "tests.helpers.tiny"])
    rng = random.Random(0)
    runs = tmp_path / "runs" / "scenes"

    def words(run_dir: Path, *more: str) -> list[str]:
        own = [f"callbacks.last.every_n_steps={INTERVAL}", "trainer.val_check_interval=5"]
        given = tiny(run_dir, images, *tiny_teacher(teacher), *own, *more, steps=STEPS)
        return ["+experiment=scenes", *given, "data.train.images=40", f"output_root={tmp_path}/runs"]

    counts: Counter[str] = Counter()
    most_lost = 0
    reached = 0
    attempts = 0
    while counts["kills"] < KILLS:
        attempts += 1
        run_dir = runs / f"{attempts:03}"
        steps = context.Value(ctypes.c_longlong, -1)
        process = context.Process(target=work, args=(words(run_dir, "ckpt_path=auto"), steps))
        process.start()
        aim = rng.choice(["start", "any", "any", "write", "write"])
        if aim == "start":
            time.sleep(rng.uniform(0, 1.5))
        else:
            while process.is_alive() and steps.value < 0:
                time.sleep(0.001)
            if aim == "any":
                time.sleep(rng.uniform(0, 0.6))
            else:
                for _ in range(rng.randrange(1, 3)):
                    wait_for_write(run_dir, process, rng)
        ended = not process.is_alive()
        process.kill()
        process.join()
        if ended:  # the training was over before it could be killed: begin another one
            assert process.exitcode == 0
            counts["trainings finished on the way"] += 1
            runs = runs.rename(tmp_path / f"finished{attempts}").parent / "runs" / "scenes"
            reached = 0
            continue
        counts["kills"] += 1
        counts["while a file was being written"] += bool(list(run_dir.rglob("*.part")))
        counts["before the first step"] += steps.value < 0
        last = newest(runs)
        reached = max(reached, steps.value)
        if last is None:
            assert reached <= INTERVAL, f"{reached} steps done and nothing saved"
            continue
        content = torch.load(last, weights_only=True)
        for other in runs.glob("*/checkpoints/*.ckpt"):
            torch.load(other, weights_only=True)
            counts["checkpoints that load"] += 1
        lost = reached - content["global_step"]
        assert lost <= INTERVAL, f"{lost} steps lost"
        most_lost = max(most_lost, lost)

    process = context.Process(target=work, args=(words(runs / "end", "ckpt_path=auto"), steps))
    process.start()
    process.join()
    assert process.exitcode == 0
    process = context.Process(target=work, args=(words(tmp_path / "whole"), steps))
    process.start()
    process.join()
    assert process.exitcode == 0
    killed, whole = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
        for path in (runs / "end", tmp_path / "whole")
    )
    assert killed["global_step"] == whole["global_step"] == STEPS
    for key, value in whole["state_dict"].items():
        assert torch.equal(killed["state_dict"][key], value), key
    assert str(killed["optimizer_states"]) == str(whole["optimizer_states"])
    assert killed["place"] == whole["place"]
    assert torch.equal(killed["curves"]["steps"], whole["curves"]["steps"])
    with capsys.disabled():
        summary = ", ".join(f"{value} {name}" for name, value in counts.items())
        print(f"\n{summary}; at most {most_lost} steps done again, saved every {INTERVAL}; ended bit-equal")
