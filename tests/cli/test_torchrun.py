"""torchrun on one node and on two: launchers, each with processes of its own, on the loopback interface."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from defeat.config import compose_config
from defeat.evaluation.detections import read_detections
from defeat.run.train import train
from tests.helpers.console import Ended, Run, logged, only, process_environment
from tests.helpers.narrow import IN_A_PROCESS
from tests.helpers.seen_images import SeenImages, global_batches
from tests.helpers.tiny import tiny

# The student begins as the shipped teacher, so that its figures are not 0, and 5 images cannot be shared out
# evenly to 2 processes.
GOOD_STUDENT = [
    "+experiment=scenes",
    "detector@student=scenes_teacher",
    "student.weights=scenes_teacher",
    "optim.optimizer.lr=1e-4",
    "data.train.images=8",
    "data.val.images=5",
    "data.val_batch_size=1",
    "data.batch_size=2",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=null",
    "callbacks.measure=null",
    "preflight=off",
]


def torchrun(nodes: int, processes: int, *words: str, of_node: Sequence[Sequence[str]] = ()) -> list[Ended]:
    """Start a launcher for each node, wait for all, and say how each ended.

    Args:
        nodes: how many launchers.
        processes: how many each starts.
        words: of defeat-train.
        of_node: further words of each node.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}"]
    launchers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *(f"--nnodes={nodes}", f"--node-rank={node}", f"--nproc-per-node={processes}"),
                *("--master-addr=127.0.0.1", f"--master-port={port}", "-m", "defeat.cli.train"),
                *(*words, *place, f"trainer.num_nodes={nodes}", *(of_node[node] if of_node else ())),
            ],
            env=process_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(nodes)
    ]
    ended = []
    try:
        for launcher in launchers:
            out, err = launcher.communicate(timeout=240)  # they wait for each other for half an hour
            ended.append(Ended(launcher.returncode, out, err))
    finally:
        for launcher in launchers:
            launcher.terminate()  # which ends its processes too
            launcher.wait()
    return ended


def assert_is_whole(run_dir: Path) -> None:
    """All that a run of one process leaves, and nothing of a second process."""
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    (events,) = (name for name in names if name.startswith("tensorboard/events"))
    assert names == {
        events,
        *(".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "csv/metrics.csv", "data.json"),
        *(
            "confusion.csv",
            "detections.safetensors",
            "environment.json",
            "tensorboard/hparams.yaml",
            "train.log",
        ),
    }
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Images("detections/1")] == [2]  # by one process of them
    assert [event.step for event in board.Images("differences_neck/1")] == [2]
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in content["state_dict"]} == {"student", "distiller"}
    assert content["global_step"] == 2
    assert OmegaConf.load(run_dir / "config.yaml").run_dir == str(run_dir)


def assert_evaluated_alike(run_dir: Path, script: Run) -> None:
    """The last validation counted every image once, by the weights that were saved: as one process does."""
    last = run_dir / "checkpoints" / "last.ckpt"
    assert script("defeat-eval", f"checkpoint={last}", "run_dir=evaluated", "save_results=true").status == 0
    alone = json.loads(Path("evaluated/evaluation.json").read_text())["coco"]
    assert alone["AP"] > 0.2
    for name, value in alone.items():
        expected = math.nan if value is None else value
        found = logged(run_dir, f"val/{name}").get(1, math.nan)
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True), name
    scores: dict[int, list[float]] = {}
    for entry in json.loads(Path("evaluated/results.json").read_text()):
        scores.setdefault(entry["image_id"], []).append(entry["score"])
    images = read_detections(run_dir / "detections.safetensors").images
    assert len(images) == 5
    for image, image_id in zip(images.values(), sorted(scores), strict=True):
        assert image.scores.tolist() == pytest.approx(scores[image_id], abs=1e-5)


@pytest.mark.slow
def test_two_nodes(tmp_path: Path, script: Run) -> None:
    first, second = torchrun(2, 1, *GOOD_STUDENT)
    assert first.status == 0, first.err
    assert second.status == 0, second.err
    assert first.out.count("parameters ") == 1
    assert (second.out, second.err) == ("", ""), "the first process speaks"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "scenes"}
    run_dir = only(tmp_path / "runs" / "scenes")
    assert_is_whole(run_dir)
    assert_evaluated_alike(run_dir, script)


@pytest.mark.slow
def test_two_processes_validate_the_average_that_they_save(script: Run) -> None:
    """The statistics of BatchNorm, which each process has of its own images, are those of the first."""
    ema = ["callbacks=ema", "callbacks.ema.decay=0.5", "callbacks.measure=null", "callbacks.progress=null"]
    words = [word for word in GOOD_STUDENT if not word.startswith("callbacks.")]
    (ended,) = torchrun(1, 2, *words, *ema)
    assert ended.status == 0, ended.err
    run_dir = only(Path("runs", "scenes"))
    assert_evaluated_alike(run_dir, script)
    last = run_dir / "checkpoints" / "last.ckpt"
    assert script("defeat-eval", f"checkpoint={last}", "run_dir=raw", "ema=false").status == 0
    alone = json.loads(Path("raw/evaluation.json").read_text())["coco"]["AP"]
    assert logged(run_dir, "val/AP_raw")[1] == pytest.approx(alone, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_wrong_key_ends_all_launchers(nodes: int, tmp_path: Path) -> None:
    for node, ended in enumerate(torchrun(nodes, 2 // nodes, "data.root=x", "optim.optmizer.lr=1")):
        assert ended.status != 0
        # torchrun adds what it has to say; it may end the second process before that has said anything
        lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert lines
        assert all("optim.optmizer.lr" in line for line in lines)
        ranks = {line.startswith("error: rank 1: ") for line in lines}
        assert ranks <= ({False, True} if nodes == 1 else {bool(node)})
        assert "defeat/cli" not in ended.err, "no traceback of this program"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_node_that_fails_before_the_processes_have_met_ends_the_other() -> None:
    """torchrun leaves the first waiting for the second, which is half an hour by default."""
    first, second = torchrun(2, 1, *GOOD_STUDENT, of_node=[[], ["student.weights=gone.pth"]])
    assert min(first.status, second.status) > 0
    assert "error: rank 1: weights 'gone.pth'" in second.err
    assert "error: rank 0 ends as rank 1 has failed\n" in first.err


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(tmp_path: Path) -> None:
    """Resumed within an epoch, on as many images a step, it sees the images that the run would have seen."""

    def words(run_dir: str, steps: int, *more: str) -> list[str]:
        own = ["data.train.images=16", "trainer.val_check_interval=4", *more]
        return ["+experiment=scenes_plain", *tiny(Path(run_dir), tmp_path / "scenes", *own, steps=steps)]

    def alone(run_dir: str, steps: int) -> dict[int, list[int]]:
        seen = tmp_path / f"{run_dir}_seen"
        train(compose_config("train", words(run_dir, steps)), [SeenImages(str(seen))])
        return global_batches(seen)

    uninterrupted, stopped = alone("whole", 10), alone("begun", 6)
    assert list(uninterrupted) == list(range(10))
    assert stopped == {step: uninterrupted[step] for step in range(6)}
    spy = "tests.helpers.seen_images.SeenImages"
    seen = [f"+callbacks.seen={{_target_:{spy},folder:{tmp_path}/resumed_seen}}"]
    checkpoint = [f"ckpt_path={tmp_path}/begun/checkpoints/last.ckpt", "data.batch_size=2"]
    (ended,) = torchrun(1, 2, *words("resumed", 10, *checkpoint, *seen, IN_A_PROCESS))
    assert ended.status == 0, ended.err
    assert ended.out.count("parameters ") == 1
    assert len(list((tmp_path / "resumed_seen").iterdir())) == 2
    assert global_batches(tmp_path / "resumed_seen") == {step: uninterrupted[step] for step in range(6, 10)}
    last = torch.load("resumed/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 10
    assert list(tmp_path.glob("resumed/*.log")) == [tmp_path / "resumed" / "train.log"]
    assert not (tmp_path / "runs").exists()
