"""``defeat-predict``: as a user goes, with readable and unreadable files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defeat.predict import Predictor
from defeat.predict import predict as predict_module
from defeat.predict.predictor import to_image
from tests.helpers.console import Run, only

WHOLE = ["score_threshold=0", "device=cpu"]


@pytest.fixture
def photos(scenes: Path, teacher: Path, tmp_path: Path) -> Path:
    """Two pictures of the validation, and a file that is none."""
    for name in ("000000.png", "000001.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((scenes / "val" / name).read_bytes())
    (tmp_path / "photos" / "damaged.jpg").write_text("no picture")
    return tmp_path / "photos"


def test_the_files_hold_what_an_evaluation_finds(teacher: Path, scenes: Path, photos: Path, script: Run):
    done = script("defeat-predict", f"checkpoint={teacher}", f"source={photos}", "run_dir=out", *WHOLE)
    assert done.status == 0, done.err
    shutil.copytree(scenes, "moved")
    moved = ["data.root=moved", "+data.val_batch_size=1"]
    evaluated = script("defeat-eval", f"checkpoint={teacher}", "save_results=true", *moved)
    assert evaluated.status == 0, evaluated.err
    content = json.loads((only(Path("runs", "eval")) / "evaluation.json").read_text())
    assert content["data"].startswith("moved")
    by_eval = json.loads((only(Path("runs", "eval")) / "results.json").read_text())
    listed = json.loads((scenes / "annotations" / "val.json").read_text())

    images = json.loads(Path("out", "images.json").read_text())
    assert [image["file_name"] for image in images["images"]] == ["000000.png", "000001.png"]
    assert [c["name"] for c in images["categories"]] == [c["name"] for c in listed["categories"]]
    results = json.loads(Path("out", "results.json").read_text())
    for image in images["images"]:
        (number,) = [i["id"] for i in listed["images"] if i["file_name"] == image["file_name"]]
        mine = [(r["bbox"], r["score"]) for r in results if r["image_id"] == image["id"]]
        assert mine == [(r["bbox"], r["score"]) for r in by_eval if r["image_id"] == number]
        assert mine

    with Path("out", "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results)
    first = results[0]
    assert float(rows[0]["score"]) == first["score"]
    assert float(rows[0]["x2"]) == pytest.approx(first["bbox"][0] + first["bbox"][2])
    assert rows[0]["class"] == images["categories"][first["category_id"] - 1]["name"]

    assert "damaged.jpg" in done.out + done.err
    assert sorted(path.name for path in Path("out", "pictures").iterdir()) == ["000000.jpg", "000001.jpg"]
    drawn, plain = Image.open("out/pictures/000000.jpg"), Image.open(photos / "000000.png")
    assert drawn.size == plain.size
    assert (np.asarray(drawn, dtype=int) != np.asarray(plain.convert("RGB"), dtype=int)).mean() > 0.05

    again = script("defeat-predict", f"checkpoint={teacher}", f"source={photos}", "run_dir=out", *WHOLE)
    assert "out" in again.line  # nothing is overwritten


def test_nothing_readable_is_an_error(teacher: Path, photos: Path, script: Run):
    words = [f"checkpoint={teacher}", f"source={photos / 'damaged.jpg'}", "device=cpu"]
    assert "damaged.jpg" in script("defeat-predict", *words).line.splitlines()[-1]


@pytest.mark.parametrize("source", ["null", "[]", "[1]"])
def test_a_source_is_a_file_or_several(teacher: Path, source: str, script: Run):
    assert "source=" in script("defeat-predict", f"checkpoint={teacher}", f"source={source}").line


def test_an_error_of_the_detector_is_none_of_the_video(
    teacher: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, script: Run
):
    video_info = pytest.importorskip("supervision").VideoInfo
    monkeypatch.setattr(predict_module, "_frames", lambda source: iter([to_image(photos / "000000.png")]))
    monkeypatch.setattr(video_info, "from_video_path", lambda path: video_info(64, 64, 5.0))
    monkeypatch.setattr(Predictor, "_detect", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    Path("clip.mp4").touch()
    with pytest.raises(RuntimeError, match="no memory"):
        script("defeat-predict", f"checkpoint={teacher}", "source=clip.mp4", "run_dir=out", *WHOLE)


def test_a_video_comes_back_with_every_frame(teacher: Path, photos: Path, script: Run):
    av = pytest.importorskip("av")
    pytest.importorskip("supervision")
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for name in ("000000.png", "000001.png", "000000.png"):
            frame = av.VideoFrame.from_image(Image.open(photos / name).convert("RGB"))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    done = script("defeat-predict", f"checkpoint={teacher}", "source=clip.mp4", "run_dir=out", *WHOLE)
    assert done.status == 0, done.err
    with av.open("out/pictures/clip.mp4") as container:
        frames = list(container.decode(video=0))
        assert (len(frames), frames[0].width, container.streams.video[0].average_rate) == (3, 64, 5)
    with Path("out", "predictions.csv").open() as file:
        assert {row["frame"] for row in csv.DictReader(file)} == {"0", "1", "2"}
    Path("broken.mp4").write_bytes(b"no video")
    broken = script("defeat-predict", f"checkpoint={teacher}", "source=broken.mp4", "run_dir=out2", *WHOLE)
    assert broken.status == 1
    assert "Traceback" not in broken.err
