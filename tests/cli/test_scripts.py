"""From a teacher to figures, as a user goes; in part through an installed executable."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.helpers.console import Run, execute, logged, only
from tests.helpers.narrow import IN_A_PROCESS
from tests.helpers.tiny import tiny, tiny_teacher

SEND = """
import os, signal
from lightning.pytorch import Callback
class Send(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def figures(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((only(Path("runs", name)) / "evaluation.json").read_text())
    return content


def assert_equal(found: dict[str, float | None], expected: dict[str, float]) -> None:
    """Equal to 1e-6; JSON's null stands for nan, which is for what has no ground truth."""
    assert len(found) == len(expected) == 12
    for name, value in found.items():
        assert (math.nan if value is None else value) == pytest.approx(
            expected[name], abs=1e-6, nan_ok=True
        ), name


def test_from_teacher_to_figures(teacher: Path, tmp_path: Path, script: Run) -> None:
    # enough steps and images for figures that are not 0; run folders get their usual names
    hits = ["data.val.images=12", "student.model.box_score_thresh=0", "optim.optimizer.lr=5e-3"]
    often = ["optim.lr_schedule.warmup_steps=3", "trainer.val_check_interval=6"]
    more = [*tiny_teacher(teacher), *hits, *often]
    words = [w for w in tiny(Path(), tmp_path / "scenes", *more, steps=12) if not w.startswith("run_dir")]
    Path("sending.py").write_text(SEND)
    more = [IN_A_PROCESS, "+callbacks.send._target_=sending.Send"]
    trained = execute("defeat-train", "+experiment=scenes", *words, *more, PYTHONPATH=str(tmp_path))
    assert trained.status == 128 + signal.SIGTERM
    assert "Warning" not in trained.err
    assert "Traceback" not in trained.err
    (line,) = [line for line in trained.err.splitlines() if "stopped" in line]
    last = only(Path("runs", "scenes")).resolve() / "checkpoints" / "last.ckpt"
    assert line == f"stopped by SIGTERM after step 3; go on with ckpt_path={last}"

    # the word that the line gives
    ended = script("defeat-train", "+experiment=scenes", *words, f"ckpt_path={last}", "run_dir=whole")
    assert ended.status == 0, ended.err
    run_dir = Path("whole").resolve()
    best = run_dir / "checkpoints" / "best.ckpt"
    assert "evaluate    defeat-eval checkpoint=whole/checkpoints/best.ckpt\n" in ended.out
    assert "export      defeat-export checkpoint=whole/checkpoints/best.ckpt\n" in ended.out
    assert list(logged(run_dir, "distill/neck_object")) == list(range(12))

    # the command that the summary gives
    evaluated = script("defeat-eval", f"checkpoint={best}", "save_results=true", "name=of_best")
    assert evaluated.status == 0, evaluated.err
    assert evaluated.out.endswith(f"export      defeat-export checkpoint={best}\n")
    of_best = figures("of_best")
    assert of_best["coco"]["AR100"] > of_best["coco"]["AP"] > 0
    assert (of_best["source"], of_best["split"]) == (str(best), "val")
    step = torch.load(best, weights_only=True)["global_step"] - 1
    assert_equal(of_best["coco"], {name: logged(run_dir, f"val/{name}")[step] for name in of_best["coco"]})

    results = only(Path("runs", "of_best")) / "results.json"
    assert set(json.loads(results.read_text())[0]) == {"image_id", "category_id", "bbox", "score"}
    data = ["data=scenes", *(word for word in words if word.startswith("data."))]
    assert script("defeat-eval", f"results={results}", *data, "name=of_results").status == 0
    expected = {k: math.nan if v is None else v for k, v in of_best["coco"].items()}
    assert_equal(figures("of_results")["coco"], expected)

    # the latest run of that name below runs/, which is the one that was stopped
    resumed = ["run_dir=resumed", "ckpt_path=last", "trainer.max_steps=5"]
    assert script("defeat-train", "+experiment=scenes", *words, *resumed).status == 0
    assert list(logged(Path("resumed"), "train/loss")) == list(range(5))
    assert torch.load("resumed/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    assert OmegaConf.load("resumed/config.yaml").ckpt_path == "last"


@pytest.mark.slow
def test_two_processes_distil_with_no_parameter_unused(teacher: Path, tmp_path: Path) -> None:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    several = [*ddp, IN_A_PROCESS, *tiny_teacher(teacher)]
    words = [w for w in tiny(Path(), tmp_path / "scenes", *several) if not w.startswith("run_dir")]
    trained = execute("defeat-train", "+experiment=scenes", *words)
    assert trained.status == 0, trained.err
    assert trained.out.count("parameters ") == 1, "one process speaks"
    run_dir = only(Path("runs", "scenes"))
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in content["state_dict"]} == {"student", "distiller"}
    assert content["global_step"] == 2
