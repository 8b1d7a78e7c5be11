"""Predictions of a checkpoint on pictures and videos, filed as pictures, CSV and COCO results."""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from defeat.config import to_plain
from defeat.errors import ConfigError, DataError
from defeat.io.atomic_write import replacing, write_text
from defeat.io.run_dirs import refuse_overwriting
from defeat.io.text import counted, one_line
from defeat.predict.extra import supervision
from defeat.predict.loading import load
from defeat.predict.predictor import Predictor, from_hwc, to_image
from defeat.predict.sources import Source, find_sources
from defeat.render import Table
from defeat.types import Prediction
from defeat.visual.pictures import draw_prediction

log = logging.getLogger(__name__)

JPEG_QUALITY = 95

DECODED_AHEAD = 4
"""Pictures that are decoded before the detector asks for them."""

Stream = Callable[[Iterable[Tensor]], Iterator[Prediction]]
Item = TypeVar("Item")


class Entry(NamedTuple):
    """The detections of a picture, or of a frame of a video."""

    name: str
    """The path under which the source is filed."""
    frame: int | None
    """The number of the frame from 0; None for a picture."""
    width: int
    height: int
    prediction: Prediction


class Predicted(NamedTuple):
    """All detections of a command."""

    entries: list[Entry]
    classes: tuple[str, ...]
    failed: list[Path]
    """Files that could not be read."""

    @property
    def objects(self) -> int:
        """How many detections there are."""
        return sum(len(entry.prediction["labels"]) for entry in self.entries)

    def summary(self) -> Table:
        """Count the detections of each class."""
        counts = Counter(label for entry in self.entries for label in entry.prediction["labels"].tolist())
        rows = [(self.classes[label - 1], counts[label]) for label in sorted(counts)]
        looked = f"{counted(self.objects, 'objects')} in {counted(len(self.entries), 'images')}"
        return Table(("class", "objects"), rows, looked)


def predict(config: DictConfig) -> Predicted:
    """Predict as configured (conf/predict.yaml), and file the results in the run's folder.

    Files that cannot be read are named in the log, and the rest is done.

    Raises:
        DefeatError: anything in the configuration or the files it names that the user can correct; or none of
            the files can be read.
    """
    plain = to_plain(config)
    folder = Path(plain["run_dir"])
    results = [folder / name for name in ("predictions.csv", "results.json", "images.json")]
    refuse_overwriting(*results, folder / "pictures")
    named = plain["source"] if isinstance(plain["source"], list) else [plain["source"]]
    if not named or not all(isinstance(word, str) for word in named):
        raise ConfigError(f"source={plain['source']} must be a file, a folder, a pattern or a list of them")
    sources = find_sources(named)
    if any(source.is_video for source in sources):
        supervision("a video")
    predictor = load(
        plain["checkpoint"],
        teacher=plain["teacher"],
        student=plain["student"],
        device=plain["device"],
        precision=plain["precision"],
        ema=plain["ema"],
        download=plain["download"],
    )
    predicted = _predict_all(predictor, sources, plain, folder / "pictures")
    if not predicted.entries:
        raise DataError(f"none of {len(sources)} files could be read; the first: {predicted.failed[0]}")
    _write(predicted, *results)
    return predicted


def _predict_all(
    predictor: Predictor, sources: Sequence[Source], config: Mapping[str, Any], folder: Path
) -> Predicted:
    keys = ("score_threshold", "classes", "batch_size", "tile", "tile_overlap")
    stream: Stream = partial(predictor.stream, **{key: config[key] for key in keys})
    drawing = _Drawing(folder, predictor.classes) if config["save_pictures"] else None
    predicted = Predicted([], predictor.classes, [])
    with _progress(len(sources)) as advance:
        decode = partial(to_image, upright=predictor.upright)
        still = (source for source in sources if not source.is_video)
        pictures = _readable(still, decode, predicted, advance)
        for source, image, prediction in _paired(pictures, stream):
            predicted.entries.append(_entry(source, None, image, prediction))
            if drawing:
                drawing.save_picture(source, image, prediction)
            advance()
        for source in sources:
            if source.is_video:
                _predict_video(source, stream, predicted, drawing)
                advance()
    return predicted


def _readable(
    sources: Iterable[Source],
    decode: Callable[[Path], Tensor],
    predicted: Predicted,
    advance: Callable[[], None],
) -> Iterator[tuple[Source, Tensor]]:
    """Decode pictures in threads, a few ahead of the detector, and leave out those that cannot be read."""
    with ThreadPoolExecutor(max_workers=DECODED_AHEAD) as pool:
        waiting: deque[tuple[Source, Future[Tensor]]] = deque()
        coming = iter(sources)
        while True:
            for source in islice(coming, DECODED_AHEAD - len(waiting)):
                waiting.append((source, pool.submit(decode, source.path)))
            if not waiting:
                return
            source, image = waiting.popleft()
            try:
                yield source, image.result()
            except DataError as error:
                _note_failure(source, error, predicted)
                advance()


def _paired(
    items: Iterable[tuple[Item, Tensor]], stream: Stream
) -> Iterator[tuple[Item, Tensor, Prediction]]:
    """Yield items with their images and what was found on them; the detector takes them in batches."""
    waiting: deque[tuple[Item, Tensor]] = deque()

    def images() -> Iterator[Tensor]:
        for item, image in items:
            waiting.append((item, image))
            yield image

    for prediction in stream(images()):
        yield *waiting.popleft(), prediction


def _predict_video(source: Source, stream: Stream, predicted: Predicted, drawing: _Drawing | None) -> None:
    """Predict all frames of a video, and write the video with the boxes drawn."""
    sv = supervision("a video")
    try:
        with _reading(source):
            info = sv.VideoInfo.from_video_path(str(source.path))
        with drawing.video(source, info) if drawing else nullcontext() as sink:
            for number, frame, prediction in _paired(enumerate(_frames(source)), stream):
                predicted.entries.append(_entry(source, number, frame, prediction))
                if drawing and sink:
                    sink.write_frame(np.asarray(drawing.draw(frame, prediction))[..., ::-1])
    except DataError as error:
        _note_failure(source, error, predicted)


def _frames(source: Source) -> Iterator[Tensor]:
    """Decode a video to (3, H, W) uint8 RGB images."""
    frames = supervision("a video").get_video_frames_generator(str(source.path))
    while True:
        with _reading(source):
            frame = next(frames, None)
        if frame is None:
            return
        yield from_hwc(frame[..., ::-1])  # OpenCV's order of colours is blue, green, red


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Turn what libraries of videos raise, which are bare exceptions, into an error of the file."""
    try:
        yield
    except Exception as error:
        raise DataError(f"video {source.path} cannot be decoded: {error}") from error


def _entry(source: Source, frame: int | None, image: Tensor, prediction: Prediction) -> Entry:
    height, width = image.shape[1:]
    return Entry(source.name.as_posix(), frame, width, height, prediction)


def _note_failure(source: Source, error: Exception, predicted: Predicted) -> None:
    log.warning("left out: %s", one_line(str(error) or f"{source.path}: {type(error).__name__}"))
    predicted.failed.append(source.path)


class _Drawing:
    """Draws detections and files the pictures under the names of their sources.

    Args:
        folder: where the pictures go.
        classes: K class names.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder
        self.classes = classes

    def draw(self, image: Tensor, prediction: Prediction) -> Image.Image:
        """Return the (3, H, W) uint8 image with the detections on it."""
        return draw_prediction(image, prediction, self.classes)

    def save_picture(self, source: Source, image: Tensor, prediction: Prediction) -> None:
        """Write a picture as JPEG."""
        with replacing(self._free(source, ".jpg")) as part:
            self.draw(image, prediction).save(part, format="JPEG", quality=JPEG_QUALITY)

    @contextmanager
    def video(self, source: Source, info: Any) -> Iterator[Any]:
        """Open a video of the size and speed of another one."""
        path = self._free(source, ".mp4")
        part = path.with_name(f"part_{path.name}")  # the suffix decides over the format
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with supervision("a video").VideoSink(str(part), info) as sink:
                yield sink
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)

    def _free(self, source: Source, suffix: str) -> Path:
        """The path of a result: a.png and a.jpg become a.jpg and a.jpg.jpg, whichever comes first."""
        path = self.folder / source.name.with_suffix(suffix)
        return path if not path.exists() else self.folder / f"{source.name}{suffix}"


@contextmanager
def _progress(files: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, and give the function that advances it by a file."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("files", total=files)
        yield lambda: progress.advance(task)


def _write(predicted: Predicted, csv: Path, results: Path, images: Path) -> None:
    """Write CSV, and COCO's results with the list of images and categories that their numbers mean."""
    rows = []
    entries = []
    for number, entry in enumerate(predicted.entries, start=1):
        boxes = entry.prediction["boxes"].tolist()
        scores, labels = entry.prediction["scores"].tolist(), entry.prediction["labels"].tolist()
        for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True):
            rows.append((entry.name, entry.frame, predicted.classes[label - 1], score, x1, y1, x2, y2))
            box = [x1, y1, x2 - x1, y2 - y1]
            entries.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    columns = ("file", "frame", "class", "score", "x1", "y1", "x2", "y2")
    write_text(csv, Table(columns, rows).as_csv())
    write_text(results, json.dumps(entries) + "\n")
    content = {
        "images": [
            {"id": number, "file_name": entry.name, "width": entry.width, "height": entry.height}
            | ({} if entry.frame is None else {"frame": entry.frame})
            for number, entry in enumerate(predicted.entries, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(predicted.classes, start=1)],
        "annotations": [],
    }
    write_text(images, json.dumps(content) + "\n")
