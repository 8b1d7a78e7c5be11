"""What the input costs: images/s of a core beside the bare decode, of several workers, and padding.

Real photos of COCO, whose longest side is 320 pixels here, and the same enlarged to COCO's own 640.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import Timed, alternate, heading, ratio, table, verdict
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import RandomHorizontalFlip

from defeat.data import DetectionDataset, collate, read_coco, read_image
from defeat.data.sampler import TrainingSampler
from defeat.run.hardware import keep_freed_memory
from defeat.types import Annotations, Batch, Record, Target

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_open_320"
GOAL = 0.7
ENLARGED = 2
QUALITY = 90
SMALL, LARGE, MULTIPLE = 800, 1333, 32  # how torchvision's detectors resize and pad
EPOCH = 20_000  # images that padding is counted over

Collate = Callable[[Sequence[tuple[Tensor, Target]]], object]


def main() -> None:
    args = arguments()
    if not (args.photos / "images").is_dir():
        sys.exit(
            f"error: {args.photos} has no images/: lay COCO photos with annotations/ there, or say --photos"
        )
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training does by default, before it starts workers
    heading("Input", packages=["pillow", "numpy"])
    photos = read_coco(args.photos / "annotations" / "instances_train.json", args.photos / "images")
    photos = photos._replace(records=photos.records[: args.images // args.batch * args.batch])
    with enlarged(photos) as larger:
        for name, data in (("320 px", photos), ("640 px", larger)):
            decoding(name, data, args)
        for name, data in (("320 px", photos), ("640 px", larger)):
            workers(name, data, args)
    padding(sizes(args.photos / "annotations"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder with images/ and annotations/")
    parser.add_argument("--images", type=int, default=192, help="photos that are read in every round")
    parser.add_argument("--batch", type=int, default=16, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=11, help="of every measurement")
    parser.add_argument("--passes", type=int, default=4, help="over the photos, where workers read them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at most")
    return parser.parse_args()


@contextmanager
def enlarged(photos: Annotations) -> Iterator[Annotations]:
    """The photos with twice the sides, as JPEG files that go when the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        records = [_enlarge(record, Path(folder)) for record in photos.records]
        yield photos._replace(records=records)


def _enlarge(record: Record, folder: Path) -> Record:
    path = folder / record.path.name
    width, height = record.width * ENLARGED, record.height * ENLARGED
    with Image.open(record.path) as image:
        image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(path, quality=QUALITY)
    boxes, area = record.boxes * ENLARGED, record.area * ENLARGED**2
    return record._replace(path=path, width=width, height=height, boxes=boxes, area=area)


def one_by_one(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """A batch whose tensors travel each by itself, as the usual functions for detection leave them."""
    return Batch([image for image, _ in samples], [target for _, target in samples])


def loader(
    data: Annotations, batch: int, workers: int, passes: int = 1, packing: Collate = collate
) -> DataLoader:
    dataset = DetectionDataset(data, RandomHorizontalFlip(0.5), drop_ignored=True)
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=TrainingSampler(dataset, batch, repeat=passes),
        collate_fn=packing,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def decoding(name: str, data: Annotations, args: argparse.Namespace) -> None:
    """One core: the parts of what we do with a file, beside the decoder alone."""
    plain, whole = DetectionDataset(data), loader(data, args.batch, 0)

    def each(read: Callable[[Record], object]) -> Callable[[], object]:
        return lambda: [read(record) is None for record in data.records]

    variants = {
        "bare Pillow decode to an RGB array": each(_bare),
        "torchvision's decode_jpeg, for information": each(_decode_jpeg),
        "ours: decode to (3, H, W)": each(
            lambda record: read_image(record.path, (record.width, record.height))
        ),
        "ours: and target": lambda: [plain[i] is None for i in range(len(plain))],
        "ours: and flip, in batches": lambda: sum(1 for _ in whole),
    }
    times = alternate(variants, args.rounds)
    bare, ours = times["bare Pillow decode to an RGB array"], times["ours: and flip, in batches"]
    size = np.mean([record.path.stat().st_size for record in data.records]) / 1024
    print(f"\n{len(data.records)} photos of {name}, {size:.0f} KiB a file, on one core:\n")
    rows = [
        [text, *_speed(own, len(data.records)), f"{ratio([bare], [own])[0]:.2f}"]
        for text, own in times.items()
    ]
    print(table(["", "images/s", "spread", "of the bare decode"], rows))
    share, spread = ratio([bare], [ours])
    met = verdict(share, GOAL, at_least=True)
    print(f"\nOurs of the bare decode, {name}: {share:.2f} ± {spread:.2f} ({met})")


def _bare(record: Record) -> np.ndarray:
    with Image.open(record.path) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _decode_jpeg(record: Record) -> Tensor:
    return decode_jpeg(read_file(str(record.path)), mode=ImageReadMode.RGB)


def _speed(timed: Timed, images: int) -> list[str]:
    return [f"{images / timed.median:.0f}", f"{timed.spread:.0%}"]


def workers(name: str, data: Annotations, args: argparse.Namespace) -> None:
    """The loader with more and more processes, each of one thread, and a main process that only takes."""
    loaders = {str(n): loader(data, args.batch, n, args.passes) for n in range(args.workers + 1)}
    last = f"{args.workers}, tensors one by one"
    loaders[last] = loader(data, args.batch, args.workers, args.passes, one_by_one)
    busy: dict[str, list[float]] = {key: [] for key in loaders}

    def take(key: str) -> Callable[[], None]:
        def run() -> None:
            started = time.process_time()
            for _ in loaders[key]:
                pass
            busy[key].append(time.process_time() - started)

        return run

    times = alternate({key: take(key) for key in loaders}, args.rounds)
    images = len(data.records) * args.passes
    print(f"\nThe loader, {name}, batches of {args.batch}:\n")
    rows = [
        [
            key,
            *_speed(own, images),
            f"{ratio([times['0']], [own])[0]:.2f}",
            f"{median(busy[key][1:]) / images * 1e3:.2f}",
        ]
        for key, own in times.items()
    ]
    print(table(["workers", "images/s", "spread", "of 0 workers", "main process, CPU ms an image"], rows))
    if args.workers > 1:
        more, spread = ratio([times["1"]], [times[str(args.workers)]])
        print(f"\n{args.workers} workers beside 1, {name}: {more:.2f} ± {spread:.2f}")


def sizes(annotations: Path) -> Tensor:
    """(N, 2) int64 width and height of all photos."""
    files = sorted(annotations.glob("*.json"))
    images = [image for file in files for image in json.loads(file.read_text())["images"]]
    return torch.tensor([[image["width"], image["height"]] for image in images])


def padding(wide_high: Tensor) -> None:
    """How much of the batches is padding, with images drawn by chance and by groups."""
    ratios = wide_high[:, 0] / wide_high[:, 1]
    groupings = {
        "by chance": None,
        "2 groups: higher than wide or not (ours)": (ratios < 1).long(),
        **{f"{n} groups of equal size by width / height": _quantiles(ratios, n) for n in (4, 8)},
    }
    pixels = {
        name: {batch: _pixels(wide_high, groups, batch) for batch in (2, 16)}
        for name, groups in groupings.items()
    }
    rows = [
        [
            name,
            *(f"{1 - real / padded:.1%}" for real, padded in own.values()),
            *(f"{own[batch][1] / own[batch][0] / _excess(pixels['by chance'][batch]):.2f}" for batch in own),
        ]
        for name, own in pixels.items()
    ]
    print(f"\nPixels of batches after the resize to {SMALL}/{LARGE}, sizes of {len(wide_high)} photos:\n")
    header = ["batches", "padding, batch of 2", "batch of 16", "pixels of those by chance, 2", "16"]
    print(table(header, rows))


def _excess(counted: tuple[int, int]) -> float:
    return counted[1] / counted[0]


def _quantiles(values: Tensor, groups: int) -> Tensor:
    return torch.bucketize(values, torch.quantile(values, torch.arange(1, groups) / groups))


def _pixels(wide_high: Tensor, groups: Tensor | None, batch: int) -> tuple[int, int]:
    """Pixels of the images of one epoch, and of their batches."""
    scale = torch.minimum(SMALL / wide_high.amin(dim=1), LARGE / wide_high.amax(dim=1))
    resized = (wide_high * scale[:, None]).floor().long()
    order = TrainingSampler(range(len(wide_high)), batch, repeat=-(-EPOCH // len(wide_high)), groups=groups)
    batches = resized[torch.tensor([sample.image for sample in order])].view(-1, batch, 2)
    padded = -(batches.amax(dim=1) // -MULTIPLE) * MULTIPLE
    return int(batches.prod(dim=2).sum()), int(padded.prod(dim=1).sum()) * batch


if __name__ == "__main__":
    main()
