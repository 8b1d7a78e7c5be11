"""What it costs to begin a run on a data set of COCO's size: seconds and memory of every stage.

The annotation file is generated: as many images, boxes and bytes of outlines as instances_train2017.json has,
beside a folder with as many empty files, for images are looked up by name but not opened before training.
Every size is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
from measure import Timed, heading, table, verdict

STAGES = ("imports", "setup", "fingerprint", "sampler", "workers")
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
SECONDS, GIB = 20.0, 2.0
CLASSES = 80
VALIDATION = 24  # COCO has so many training images for each validation image
MIB = 2**20


def main() -> None:
    args = arguments()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    heading("Start-up", packages=["lightning", "numpy"])
    sizes = [(round(args.images * share), round(args.boxes * share)) for share in SHARES]
    found = [several(args.rounds, *size) for size in sizes]
    report(sizes, found, full=args.images == arguments([]).images)
    if args.json:
        args.json.write_text(json.dumps(points(sizes, found)))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=118_287, help="of the largest data set")
    parser.add_argument("--boxes", type=int, default=860_001, help="of the largest data set")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes for each size")
    parser.add_argument("--json", type=Path, help="file for the points that benchmarks/growth.py plots")
    parser.add_argument(
        "--measure", type=Path, help="measure one data set and print JSON (what the others start)"
    )
    return parser.parse_args(words)


# The data


def generate(root: Path, images: int, boxes: int) -> int:
    """Write a training and a validation split; returns the bytes of the training split's annotations."""
    for split, share in (("train", 1), ("val", VALIDATION)):
        write_split(root, split, max(images // share, 1), max(boxes // share, 1))
    return (root / "train.json").stat().st_size


def write_split(root: Path, split: str, images: int, boxes: int) -> None:
    rng = np.random.default_rng(0)
    folder = root / split
    folder.mkdir()
    ids = rng.choice(600_000, images, replace=False)
    for image in ids.tolist():
        os.close(os.open(folder / f"{image:012d}.jpg", os.O_CREAT | os.O_WRONLY))
    with (root / f"{split}.json").open("w") as file:
        file.write('{"info": {"year": 2017},"licenses": [],"images": [')
        file.write(",".join(map(image_text, ids.tolist())))
        file.write('],"annotations": [')
        for start in range(0, boxes, 10_000):
            file.write("," if start else "")
            file.write(",".join(box_texts(rng, ids, start, min(start + 10_000, boxes))))
        file.write('],"categories": [')
        names = ({"supercategory": "thing", "id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1))
        file.write(",".join(map(json.dumps, names)) + "]}")


def image_text(image: int) -> str:
    """As in the file of COCO, addresses and all."""
    return (
        f'{{"license": 3,"file_name": "{image:012d}.jpg","coco_url": "http://images.invalid/train2017/{image:012d}.jpg",'
        f'"height": 480,"width": 640,"date_captured": "2013-11-14 11:18:45",'
        f'"flickr_url": "http://photos.invalid/8186/{image:012d}_5b9fcd6b58_z.jpg","id": {image}}}'
    )


def box_texts(rng: np.random.Generator, ids: np.ndarray, start: int, stop: int) -> Iterator[str]:
    """Annotations ``start`` to ``stop``, of random images; one in a hundred is a crowd."""
    outlines, crowds = outline_texts()
    n = stop - start
    corner = np.round(rng.uniform(0, 1, (n, 2)) * (500, 360), 2)
    side = np.round(rng.uniform(2, 120, (n, 2)), 2)
    columns = zip(
        rng.choice(ids, n).tolist(),
        np.concatenate([corner, side], axis=1).tolist(),
        np.round(side.prod(1) * 0.6, 4).tolist(),
        rng.integers(1, CLASSES + 1, n).tolist(),
        (rng.random(n) < 0.01).tolist(),
        rng.integers(0, len(outlines), n).tolist(),
        strict=True,
    )
    for i, (image, box, area, category, crowd, which) in enumerate(columns, start):
        outline = crowds[which % len(crowds)] if crowd else outlines[which]
        yield (
            f'{{"segmentation": {outline},"area": {area},"iscrowd": {int(crowd)},"image_id": {image},'
            f'"bbox": [{",".join(map(str, box))}],"category_id": {category},"id": {1768 + i}}}'
        )


def outline_texts() -> tuple[list[str], list[str]]:
    """Polygons of as many numbers as COCO's have, from 8 to hundreds, and run lengths of crowds."""
    rng = np.random.default_rng(1)
    points = np.clip(rng.lognormal(3.0, 0.75, 2000), 4, 400).astype(int)
    polygons = [
        f"[[{','.join(map(str, np.round(rng.uniform(0, 640, 2 * n), 2).tolist()))}]]" for n in points.tolist()
    ]
    runs = [
        f'{{"counts": [{",".join(map(str, rng.integers(0, 900, 500).tolist()))}],"size": [480,640]}}'
        for _ in range(50)
    ]
    return polygons, runs


# The measurement


def several(rounds: int, images: int, boxes: int) -> dict[str, list[float]]:
    """Every figure of every round of one size."""
    with tempfile.TemporaryDirectory() as folder:
        size = generate(Path(folder), images, boxes)
        command = [sys.executable, __file__, "--measure", folder]
        found = [json.loads(subprocess.check_output(command, text=True)) for _ in range(rounds)]
    return {key: [one[key] for one in found] for key in found[0]} | {"bytes": [size]}


def measure(root: Path) -> dict[str, float]:
    """Begin a run up to its first batch; seconds of every stage, and peaks of resident memory in bytes."""
    found: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        forget_peak()
        started = time.perf_counter()
        yield
        found[name] = time.perf_counter() - started
        found[f"{name} peak"] = memory("VmHWM")

    with stage("imports"):
        import torch
        from torch.utils.data import DataLoader

        import defeat.data.dataset
        import defeat.run.train  # what a run imports
        from defeat.data import DetectionDataModule, DetectionDataset, read_coco

    readers = (partial(read_coco, f"{split}.json", split) for split in ("train", "val"))
    module = DetectionDataModule(*readers, root=str(root))
    with stage("setup"):
        module.setup("fit")
    found["held"] = memory("VmRSS")
    with stage("fingerprint"):
        module.fingerprints()
    with stage("sampler"):
        next(iter(module.train_dataloader().sampler))

    black = torch.zeros(3, 1, 1, dtype=torch.uint8)
    defeat.data.dataset.read_image = lambda path, size=None: (
        black
    )  # the files are empty; boxes are what counts
    dataset = DetectionDataset(module.read("train"), drop_ignored=True)
    loader = DataLoader(dataset, 16, num_workers=2, collate_fn=len, persistent_workers=True)
    with stage("workers"):
        next(batches := iter(loader))
    workers = [process.pid for process in active_children()]
    found["worker at first"] = statistics.mean(map(own_memory, workers))
    for _ in batches:
        pass
    found["worker after a pass"] = statistics.mean(map(own_memory, workers))
    found["total"] = sum(found[name] for name in STAGES)
    found["peak"] = max(found[f"{name} peak"] for name in STAGES)
    return found


def memory(field: str) -> int:
    """Bytes, of this process: VmRSS now, VmHWM at most since :func:`forget_peak`."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def own_memory(pid: int) -> int:
    """Bytes that a process shares with no other: for a worker, what it has copied or made since it began."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kb) for kb in re.findall(r"Private_\w+:\s+(\d+) kB", text))


# The report


def points(
    sizes: Sequence[tuple[int, int]], found: Sequence[dict[str, list[float]]]
) -> list[dict[str, float]]:
    """Seconds and peak of the whole start by the number of boxes."""
    return [
        {
            "boxes": boxes,
            "seconds": statistics.median(one["total"]),
            "mib": statistics.median(one["peak"]) / MIB,
        }
        for (_, boxes), one in zip(sizes, found, strict=True)
    ]


def report(sizes: Sequence[tuple[int, int]], found: Sequence[dict[str, list[float]]], full: bool) -> None:
    seconds = [{name: Timed(one[name]) for name in (*STAGES, "total")} for one in found]
    rows = [
        [
            f"{images:,}",
            f"{boxes:,}",
            f"{one['bytes'][0] / MIB:.0f}",
            *(f"{timed[name].median:.2f}" for name in STAGES),
            f"{timed['total'].median:.1f} ± {timed['total'].spread:.0%}",
        ]
        for (images, boxes), one, timed in zip(sizes, found, seconds, strict=True)
    ]
    print("Seconds, in a fresh process:\n")
    print(table(["images", "boxes", "MiB of JSON", *STAGES, "whole start"], rows))
    columns = ("setup peak", "held", "peak", "worker at first", "worker after a pass")
    rows = [
        [f"{images:,}", *(f"{statistics.median(one[name]) / MIB:.0f}" for name in ("imports peak", *columns))]
        for (images, _), one in zip(sizes, found, strict=True)
    ]
    print("\nMiB of resident memory; of a worker, what it shares with no other process:\n")
    print(table(["images", "imports", *columns[:2], "peak of all", *columns[3:]], rows))
    total, peak = seconds[-1]["total"].median, statistics.median(found[-1]["peak"]) / 2**30
    print(f"\nSetup from half of the images to all: {growth(seconds):.2f} times the seconds (2 is a line)")
    if full:
        print(f"Whole start: {total:.1f} s ({verdict(total, SECONDS)})")
        print(f"Peak: {peak:.2f} GiB ({verdict(peak, GIB)})")


def growth(seconds: Sequence[dict[str, Timed]]) -> float:
    return seconds[-1]["setup"].median / seconds[-2]["setup"].median


if __name__ == "__main__":
    main()
