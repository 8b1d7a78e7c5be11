"""Train the rows of a table of docs/results.md over several seeds, and compare them by ``defeat-report``.

    python tools/evidence.py scenes
    python tools/evidence.py bccd --data BCCD --resnet50 resnet50.safetensors --jobs 4
    python tools/evidence.py person --data coco_open_320 --resnet50 resnet50.safetensors \\
        --mobilenetv2 mobilenet_v2.safetensors

All rows of a table have the same student, steps and batches, and weights that come from the same procedure:
every loss pulls as strongly as the detection loss (``distiller.balance=gradient``), or ``--share`` times as
strongly, or, with ``--tuned``, as strongly as was best for its method in a search with a seed that no table
uses. Rows at other shares have other names, so that one folder holds them all. Begun again, it leaves out
what has ended and goes on with what was cut off. Words such as ``trainer=gpu`` go to all trainings.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
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

TUNED = {
    "scenes": {
        "all_neck": "distiller.share=30",
        "neck_object": "distiller.share=10",
        "neck": "distiller.shares={neck_object: 30.0}",
        "neck_cls": "distiller.shares={neck_object: 30.0}",
        "fgfi": "distiller.share=30",
        "defeat": "distiller.shares={neck_object: 30.0}",
    }
}
"""By table and row the shares that were best with seed 100, of those in docs/results.md."""

LONGER = 1.5
"""Steps of ``plain_long`` over those of the other rows."""


class Table(NamedTuple):
    """The recipes of a table, each with the words of ``defeat-train`` that make them comparable."""

    plain: list[str]
    distilled: list[str]
    teacher: list[str]  # none for the scenes, whose teacher comes with the package


BY_STEPS = ["data.batch_size=8", "trainer.max_epochs=1000", "trainer.check_val_every_n_epoch=null"]
SMALL_R18 = [  # the student of +experiment=bccd_r18
    "detector@student=frcnn_r18",
    "student.backbone_weights=null",
    "student.model.norm=batch",
    "student.model.trainable_layers=5",
    "student.model.box_head_channels=512",
    "optim.optimizer.lr=1.0e-3",
    "optim.lr_schedule.warmup_steps=100",
]
OWN_TEACHER = [
    "+experiment=own_teacher",
    *BY_STEPS,
    "trainer.max_steps=500",
    "trainer.val_check_interval=250",
]
TABLES = {
    "scenes": Table(["+experiment=scenes_plain"], ["+experiment=scenes"], []),
    "bccd": Table(
        ["+experiment=bccd_r18", "data.test=null"],
        ["+experiment=bccd_r50_r18", "data.test=null", "teacher.model.stride_in_1x1=true"],
        ["+experiment=bccd_r50_teacher", "data.test=null"],
    ),
    "person": Table(["+experiment=own_plain", *BY_STEPS], ["+experiment=own", *BY_STEPS], OWN_TEACHER),
    "person_r18": Table(
        ["+experiment=own_plain", *BY_STEPS, *SMALL_R18],
        ["+experiment=own", *BY_STEPS, *SMALL_R18],
        OWN_TEACHER,
    ),
}


class Job(NamedTuple):
    """One training: words of ``defeat-train``, and the folder that holds its runs."""

    words: list[str]
    folder: Path

    @property
    def ended(self) -> Path:
        """A file that says that the training came to its end, and with which words."""
        return self.folder / "ended"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what has not ended, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument(
        "--folder", type=Path, default=Path("evidence"), help="of all runs (default: evidence)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"{', '.join(ROWS)} (default: all)"
    )
    parser.add_argument("--steps", type=int, default=400, help="of every row (default: 400)")
    parser.add_argument("--labels", type=int, help="of bccd's 205 images the student has these (default: 20)")
    shares = parser.add_mutually_exclusive_group()
    shares.add_argument("--share", type=float, help="of every distillation loss (default: 1)")
    shares.add_argument(
        "--object-share", type=float, help="of the loss of the neck's object regions; all others have 1"
    )
    shares.add_argument("--tuned", action="store_true", help="those that were best for each row")
    parser.add_argument("--data", type=Path, help="the folder of BCCD or of coco_open_320")
    parser.add_argument("--resnet50", help="ImageNet weights of the teacher's backbone")
    parser.add_argument("--mobilenetv2", help="ImageNet weights of the student's backbone, for person")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    arguments = sys.argv[1:] if arguments is None else arguments
    passed_on = [word for word in arguments if "=" in word and not word.startswith("-")]
    options = parser.parse_args([word for word in arguments if word not in passed_on])
    if options.table != "scenes" and not (options.data and options.resnet50):
        parser.error(f"{options.table} needs --data and --resnet50")
    if options.table == "person" and not options.mobilenetv2:
        parser.error("person needs --mobilenetv2")
    if options.labels and options.table != "bccd":
        parser.error("--labels is for bccd")
    tuned = TUNED.get(options.table, {})
    if not options.rows:
        options.rows = [row for row in ROWS if not options.tuned or row in tuned or not ROWS[row]]
    unknown = [row for row in options.rows if ROWS[row] and row not in tuned]
    if options.tuned and unknown:
        parser.error(f"the share that is best is not known in {options.table} for {', '.join(unknown)}")
    root = options.folder / f"{options.table}_{options.steps}"
    if options.labels:
        root = root.with_name(f"{root.name}_labels{options.labels}")
    if options.table.startswith("person"):
        photos, options.data = options.data, options.folder / "coco_person"
        if not options.dry_run and not (options.data / "annotations/instances_val.json").exists():
            copy_persons(photos, options.data)
    teacher = _teacher(options, passed_on)
    jobs = [_student(options, row, seed, root, passed_on) for seed in options.seeds for row in options.rows]
    if options.dry_run:
        for job in [*teacher, *jobs]:
            print("defeat-train", shlex.join(job.words))
        return
    for job in [*teacher, *jobs]:
        if job.ended.exists() and job.ended.read_text() != shlex.join(job.words):
            parser.error(
                f"{job.folder} was trained with other words ({job.ended.read_text()}): name another --folder"
            )
    taught = [job for job in jobs if any(word.startswith("teacher.weights=") for word in job.words)]
    first = [*teacher, *(job for job in jobs if job not in taught)]
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [job for job, ended in zip(first, pool.map(_train, first), strict=True) if not ended]
        if not failed:
            failed = [job for job, ended in zip(taught, pool.map(_train, taught), strict=True) if not ended]
    if failed:
        sys.exit(
            f"{len(failed)} trainings failed, such as {failed[0].folder}: see train.log there; run this again"
        )
    subprocess.run([BIN / "defeat-report", *(str(job.folder) for job in jobs)], check=True)


def copy_persons(source: Path, folder: Path) -> Path:
    """Copy coco_open_320 with one of its classes alone: most of the 78 have too few pictures to be learnt."""
    shutil.copytree(source / "images", folder / "images", dirs_exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for name in ("instances_train.json", "instances_val.json"):
        content = json.loads((source / "annotations" / name).read_text())
        content["categories"] = [row for row in content["categories"] if row["name"] == "person"]
        person = content["categories"][0]["id"]
        content["annotations"] = [row for row in content["annotations"] if row["category_id"] == person]
        (folder / "annotations" / name).write_text(json.dumps(content))
    return folder


def _teacher(options: argparse.Namespace, passed_on: list[str]) -> list[Job]:
    """The training of the teacher, one for all tables of the same pictures."""
    words = TABLES[options.table].teacher
    if not words:
        return []
    words = [*words, f"data.root={options.data}"]
    words += [f"student.backbone_weights={options.resnet50}", "student.model.stride_in_1x1=true"]
    return [_job(words, "teacher", _teacher_root(options), passed_on)]


def _teacher_root(options: argparse.Namespace) -> Path:
    return Path(options.folder, options.table.partition("_")[0])


def _student(options: argparse.Namespace, row: str, seed: int, root: Path, passed_on: list[str]) -> Job:
    distiller, table = ROWS[row], TABLES[options.table]
    words, name = list(table.distilled if distiller else table.plain), row
    if distiller:
        # The scenes' own DeFeat is that of small backbones, which end at stride 16.
        config = "defeat_scenes" if (options.table, distiller) == ("scenes", "defeat") else distiller
        words += [f"distiller={config}", "distiller.balance=gradient", "preflight=off"]
        if options.tuned:
            words.append(TUNED[options.table][row])
            name += "_tuned"
        elif options.share:
            words.append(f"distiller.share={options.share:g}")
            name += f"_share{options.share:g}"
        elif options.object_share:
            words.append(f"distiller.shares={{neck_object: {options.object_share}}}")
            name += f"_objects{options.object_share:g}"
        if table.teacher:
            words.append(f"teacher.weights={_teacher_root(options)}/teacher/best.ckpt")
    if table.teacher:
        words.append(f"data.root={options.data}")
    if options.table == "person":
        words.append(f"student.backbone_weights={options.mobilenetv2}")
    if options.labels:  # 200 images an epoch, as in the recipe
        words += [f"data.limit_train={options.labels}", f"data.repeat={max(1, round(200 / options.labels))}"]
    steps = round(options.steps * (LONGER if row == "plain_long" else 1))
    words += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps // 2}", f"seed={seed}"]
    return _job(words, name, root / f"seed{seed}", passed_on)


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
    job.ended.write_text(shlex.join(job.words))
    return True


if __name__ == "__main__":
    main()
