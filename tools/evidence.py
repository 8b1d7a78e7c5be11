"""Train the rows of a table of docs/results.md over several seeds, and compare them by ``defeat-report``.

    python tools/evidence.py scenes
    python tools/evidence.py bccd --data BCCD --resnet50 resnet50.safetensors --jobs 4

All rows of a table have the same student, steps and batches, and weights that come from the same procedure:
every loss pulls as strongly as the detection loss (``distiller.balance=gradient``); of ``all_neck_tuned`` so
many times as strongly as was best on a seed that no table uses. Begun again, it leaves out what has ended and
goes on with what was cut off. Further words are passed on to every training, such as ``trainer=gpu``.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

BIN = Path(sys.executable).parent

ROWS = {
    "plain": None,
    "plain_long": None,
    "all_neck": "all_neck",
    "all_neck_tuned": "all_neck",
    "neck_object": "neck_object",
    "neck_background": "neck_background",
    "neck": "neck",
    "neck_cls": "neck_cls",
    "defeat": "defeat",
    "fgfi": "fgfi",
    "tadf": "tadf",
    "pkd": "pkd",
    "cwd": "cwd",
}
"""The distiller of each row; ``plain_long`` has the time that distilling costs, as further steps."""

TUNED = {"scenes": 30}
"""The share of all-neck's loss that was best, of 1, 3, 10, 30 and 100 with seed 100, by table."""

LONGER = 1.5
"""Steps of ``plain_long`` over those of the other rows."""


class Job(NamedTuple):
    """One training: words of ``defeat-train``, and the folder that holds its runs."""

    words: list[str]
    folder: Path

    @property
    def ended(self) -> Path:
        """A file that says that the training came to its end."""
        return self.folder / "ended"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what has not ended, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=["scenes", "bccd"])
    parser.add_argument(
        "--folder", type=Path, default=Path("evidence"), help="of all runs (default: evidence)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="(default: all)")
    parser.add_argument("--steps", type=int, default=400, help="of every row (default: 400)")
    parser.add_argument("--data", help="the folder of BCCD")
    parser.add_argument("--resnet50", help="ImageNet weights of the teacher's backbone")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options, passed_on = parser.parse_known_args(arguments)
    if options.table == "bccd" and not (options.data and options.resnet50):
        parser.error("bccd needs --data and --resnet50")
    options.rows = options.rows or [row for row in ROWS if row != "all_neck_tuned" or options.table in TUNED]
    if "all_neck_tuned" in options.rows and options.table not in TUNED:
        parser.error(f"the share of all-neck that is best is not known for {options.table}")
    root = options.folder / f"{options.table}_{options.steps}"
    teacher = _teacher(options, root, passed_on)
    jobs = [_student(options, row, seed, root, passed_on) for seed in options.seeds for row in options.rows]
    if options.dry_run:
        for job in [*teacher, *jobs]:
            print("defeat-train", shlex.join(job.words))
        return
    failed = [job for job in teacher if not _train(job)]
    if not failed:
        with ThreadPoolExecutor(options.jobs) as pool:
            failed = [job for job, ended in zip(jobs, pool.map(_train, jobs), strict=True) if not ended]
    if failed:
        sys.exit(
            f"{len(failed)} trainings failed, such as {failed[0].folder}: see train.log there; run this again"
        )
    folders = [str(root / f"seed{seed}" / row) for seed in options.seeds for row in options.rows]
    subprocess.run([BIN / "defeat-report", *folders], check=True)


def _teacher(options: argparse.Namespace, root: Path, passed_on: list[str]) -> list[Job]:
    if options.table == "scenes":  # whose teacher comes with the package
        return []
    words = ["+experiment=bccd_r50_teacher", f"data.root={options.data}", "data.test=null"]
    words += [f"student.backbone_weights={options.resnet50}", "student.model.stride_in_1x1=true"]
    return [_job(words, "teacher", root, passed_on)]


def _student(options: argparse.Namespace, row: str, seed: int, root: Path, passed_on: list[str]) -> Job:
    distiller = ROWS[row]
    if options.table == "scenes":
        words = ["+experiment=scenes" if distiller else "+experiment=scenes_plain"]
    else:
        words = ["+experiment=bccd_r50_r18" if distiller else "+experiment=bccd_r18"]
        words += [f"data.root={options.data}", "data.test=null"]
    if distiller:
        # The scenes' own DeFeat is that of small backbones, which end at stride 16.
        name = "defeat_scenes" if (options.table, distiller) == ("scenes", "defeat") else distiller
        words += [f"distiller={name}", "distiller.balance=gradient", "preflight=off"]
        if row == "all_neck_tuned":
            words.append(f"distiller.share={TUNED[options.table]}")
        if options.table == "bccd":
            words += [f"teacher.weights={root}/teacher/best.ckpt", "teacher.model.stride_in_1x1=true"]
    steps = round(options.steps * (LONGER if row == "plain_long" else 1))
    words += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps // 2}", f"seed={seed}"]
    return _job(words, row, root / f"seed{seed}", passed_on)


def _job(words: list[str], name: str, root: Path, passed_on: list[str]) -> Job:
    return Job([*words, f"name={name}", f"output_root={root}", "ckpt_path=auto", *passed_on], root / name)


def _train(job: Job) -> bool:
    """Train to the end, if that is not done; True if it is."""
    if job.ended.exists():
        return True
    job.folder.mkdir(parents=True, exist_ok=True)
    print("defeat-train", shlex.join(job.words), flush=True)
    with (job.folder / "train.log").open("a") as log:
        status = subprocess.run(
            [BIN / "defeat-train", *job.words], stdout=log, stderr=log, check=False
        ).returncode
    if status:
        return False
    newest = sorted(job.folder.glob("*/checkpoints/best.ckpt"))[-1]
    link = job.folder / "best.ckpt"
    link.unlink(missing_ok=True)
    link.symlink_to(newest.resolve())
    job.ended.touch()
    return True


if __name__ == "__main__":
    main()
