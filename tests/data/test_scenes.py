import hashlib
import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defeat.data.scenes import (
    CLASSES,
    GENERATOR_VERSION,
    Scene,
    generate_scenes,
    read_scenes,
    render_scene,
    store,
)
from defeat.data.scenes.canvas import VISIBLE, Canvas
from defeat.data.scenes.shapes import BUILDS, COVERED, Stamp, rasterise, transform
from defeat.errors import DataError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(0, "train", index) for index in range(150)]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def tight(mask: np.ndarray) -> tuple[int, ...]:
    ys, xs = mask.nonzero()
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


# What is rendered


@pytest.mark.parametrize("other", [(4, "val", 7), (3, "train", 7), (3, "val", 8)])
def test_other_seed_split_or_index_gives_another_scene(other: tuple[int, str, int]):
    assert (render_scene(3, "val", 7).image != render_scene(*other).image).mean() > 0.5


def test_frozen_pixels():
    """The pixels that GENERATOR_VERSION stands for; raise it when this changes on purpose."""
    if (version("numpy").split(".")[0], version("pillow").split(".")[0]) != ("2", "13"):
        pytest.skip("other versions of numpy's streams and Pillow's drawing may give other pixels")
    sha = hashlib.sha256()
    for index in range(12):
        scene = render_scene(0, "frozen", index, 64)
        sha.update(scene.image.tobytes() + repr(scene.objects).encode())
    assert (GENERATOR_VERSION, sha.hexdigest()[:16]) == (1, "a24237f257552476")


def test_every_class_and_a_spread_of_sizes(scenes: list[Scene]):
    objects = [o for s in scenes for o in s.objects if not o.crowd]
    counts = Counter(o.label for o in objects)
    assert set(counts) == set(range(1, len(CLASSES) + 1))
    assert min(counts.values()) > 0.4 * max(counts.values())
    sides = [max(o.box[2] - o.box[0], o.box[3] - o.box[1]) for o in objects]
    assert min(sides) < 12
    assert max(sides) > 70
    assert 18 < np.median(sides) < 36


def test_empty_images_and_crowds_occur(scenes: list[Scene]):
    empty = sum(not s.objects for s in scenes)
    crowds = [o for s in scenes for o in s.objects if o.crowd]
    assert 2 <= empty <= 25
    assert 2 <= len(crowds) <= 25
    assert all(o.area < 0.9 * (o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) for o in crowds)


def test_objects_overlap_but_stay_visible(scenes: list[Scene]):
    shares = []
    for scene in scenes:
        seen = np.bincount(scene.owner.ravel(), minlength=len(scene.objects) + 1)[1:]
        shares += [n / o.area for n, o in zip(seen, scene.objects, strict=True)]
    assert min(shares) >= VISIBLE
    assert max(shares) == 1.0
    assert np.mean(np.array(shares) < 0.9) > 0.05


def test_boxes_lie_inside_and_are_tight(scenes: list[Scene]):
    whole = 0
    for scene in scenes:
        for number, thing in enumerate(scene.objects, start=1):
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= 128
            assert 0 <= y1 < y2 <= 128
            mask = scene.owner == number
            if mask.sum() == thing.area:  # nothing lies on it
                whole += 1
                assert tight(mask) == thing.box
    assert whole > 200


def test_backgrounds_are_textured_and_colours_are_no_cue(scenes: list[Scene]):
    assert min(float(s.image.std(axis=(0, 1)).max()) for s in scenes) > 3
    means = {
        label: np.mean(
            [s.image[s.owner == i].mean(axis=0) for s in scenes for i in _holders(s, label)], axis=0
        )
        for label in range(1, 9)
    }
    assert np.ptp(np.array(list(means.values())), axis=0).max() < 60


def _holders(scene: Scene, label: int) -> list[int]:
    return [i for i, o in enumerate(scene.objects, start=1) if o.label == label]


# Shapes and the canvas


def stamp(name: str, diameter: float = 40, turn: float = 0.0) -> Stamp:
    made = rasterise(transform(BUILDS[CLASSES.index(name)][1], diameter / 2, turn, 1.0))
    assert made is not None
    return made


def test_box_matches_the_pixels_that_painting_changes():
    canvas = Canvas(np.full((96, 96, 3), 128, dtype=np.uint8))
    for i, (name, x, y) in enumerate([("star", 30, 30), ("arrow", 84, 60), ("ring", 20, 90)]):
        before = canvas.pixels.copy()
        spot = canvas.fit(stamp(name, turn=0.1), x, y, label=1)
        assert spot is not None
        canvas.paint(spot, np.zeros((*spot.alpha.shape, 3), dtype=np.uint8), label=1, crowd=False)
        changed = (before.astype(int) - canvas.pixels)[..., 0] >= 128 * COVERED // 255
        assert canvas.placed[i].box == tight(changed)
        assert canvas.placed[i].area == changed.sum()


def test_canvas_refuses_to_hide_an_object():
    canvas = Canvas(np.zeros((96, 96, 3), dtype=np.uint8))
    small, large = stamp("disc", 12), stamp("square", 60)
    spot = canvas.fit(small, 48, 48, label=1)
    assert spot is not None
    canvas.paint(spot, np.zeros((*spot.alpha.shape, 3), dtype=np.uint8), label=1, crowd=False)
    assert canvas.fit(large, 48, 48, label=2) is None
    assert canvas.fit(large, 48, 48, label=0) is None  # clutter may not either
    assert canvas.fit(large, 80, 18, label=2) is not None


@pytest.mark.parametrize(("x", "y"), [(95, 10), (0, 0), (10, 96), (500, 10), (10, -500)])
def test_canvas_refuses_what_lies_mostly_outside(x: int, y: int):
    canvas = Canvas(np.zeros((96, 96, 3), dtype=np.uint8))
    assert canvas.fit(stamp("square", 60), x, y, label=1) is None
    assert canvas.fit(stamp("square", 60), x + 130, y, label=0) is None  # even clutter


def test_rasterised_disc_has_the_area_of_a_disc():
    disc = stamp("disc", 60)
    radius = 0.95 * 30
    assert disc.alpha.sum() / 255 == pytest.approx(np.pi * radius**2, rel=0.02)
    assert disc.alpha.shape == pytest.approx((2 * radius, 2 * radius), abs=1.5)


def test_classes_differ_in_shape():
    """At 24 px every two classes differ in more than a tenth of their pixels, however they are turned."""

    def grid(name: str, turn: float) -> np.ndarray:
        board = np.zeros((48, 48))
        made = stamp(name, 24, turn)
        height, width = made.alpha.shape
        board[24 + made.y : 24 + made.y + height, 24 + made.x : 24 + made.x + width] = made.alpha / 255
        return board

    turned = {name: [grid(name, i / 24) for i in range(24)] for name in CLASSES}
    for i, name in enumerate(CLASSES):
        still = turned[name][0]
        for other in CLASSES[i + 1 :]:
            nearest = min(np.abs(still - g).sum() / max(still.sum(), g.sum()) for g in turned[other])
            assert nearest > 0.1, (name, other)


def test_nothing_is_left_of_a_speck():
    assert rasterise(transform(BUILDS[0][0], 0.05, 0.0, 1.0)) is None


# What is on disk


def test_same_seed_same_files(tmp_path: Path):
    generate_scenes(tmp_path / "a", "train", 4, size=48, seed=1)
    generate_scenes(tmp_path / "b", "train", 4, size=48, seed=1)
    generate_scenes(tmp_path / "c", "train", 4, size=48, seed=2)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert sorted(a) == ["annotations/train.json", *(f"train/{i:06d}.png" for i in range(4))]
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_fewer_images_are_the_first_of_more(tmp_path: Path):
    few = generate_scenes(tmp_path / "few", "train", 3, size=48)
    many = generate_scenes(tmp_path / "many", "train", 6, size=48)
    assert digest(few.parent.parent / "train").items() < digest(many.parent.parent / "train").items()
    first, second = (json.loads(f.read_text())["annotations"] for f in (few, many))
    assert first == second[: len(first)]
    assert all(a["image_id"] > 3 for a in second[len(first) :])


def test_annotation_file(tmp_path: Path):
    file = generate_scenes(tmp_path, "val", 12, size=64, seed=5)
    content = json.loads(file.read_text())
    assert file == tmp_path / "annotations" / "val.json"
    assert content["info"].items() >= {
        "generator_version": GENERATOR_VERSION, "seed": 5, "images": 12, "size": 64, "split": "val",
    }.items()  # fmt: skip
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    for index, entry in enumerate(content["images"]):
        scene = render_scene(5, "val", index, 64)
        with Image.open(tmp_path / "val" / entry["file_name"]) as image:
            assert np.array_equal(np.asarray(image), scene.image)
        found = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
        assert [(a["category_id"], a["area"], bool(a["iscrowd"])) for a in found] == [
            (o.label, o.area, o.crowd) for o in scene.objects
        ]
        assert [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in found)] == [
            o.box for o in scene.objects
        ]


def test_existing_split_is_reused(tmp_path: Path):
    file = generate_scenes(tmp_path, "train", 3, size=48)
    files = [file, *(tmp_path / "train").iterdir()]
    before = [f.stat().st_mtime_ns for f in files]
    assert generate_scenes(tmp_path, "train", 3, size=48) == file
    assert [f.stat().st_mtime_ns for f in files] == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"images": 4}, "images=3 instead of 4"),
        ({"size": 64}, "size=48 instead of 64"),
        ({"seed": 9}, "seed=0 instead of 9"),
        ({"version": GENERATOR_VERSION + 1}, "generator_version"),
    ],
)
def test_other_parameters_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, int], message: str
):
    parameters = {"images": 3, "size": 48, "seed": 0}
    generate_scenes(tmp_path, "train", **parameters)
    before = digest(tmp_path)
    monkeypatch.setattr(store, "GENERATOR_VERSION", other.get("version", GENERATOR_VERSION))
    with pytest.raises(DataError, match=message):
        generate_scenes(
            tmp_path, "train", **{name: other.get(name, value) for name, value in parameters.items()}
        )
    assert digest(tmp_path) == before


@pytest.mark.parametrize("written", [None, "not json", "[]", '{"images": []}'])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, written: str | None):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").write_text("keep")
    if written is not None:
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "train.json").write_text(written)
    before = digest(tmp_path)
    with pytest.raises(DataError, match="choose another root"):
        generate_scenes(tmp_path, "train", 2, size=48)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("moment", ["rendering", "publishing"])
def test_interrupted_generation_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_annotate" if moment == "rendering" else "_publish", stop)
        with pytest.raises(KeyboardInterrupt):
            generate_scenes(tmp_path, "train", 3, size=48)
    assert not (tmp_path / "train").exists()
    assert not list(tmp_path.glob(".train-*"))
    generate_scenes(tmp_path, "train", 3, size=48)
    generate_scenes(tmp_path / "fresh", "train", 3, size=48)
    fresh = digest(tmp_path / "fresh")
    assert {k: v for k, v in digest(tmp_path).items() if not k.startswith("fresh")} == fresh


def test_a_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another rank puts the same split in place while this one still renders."""
    write = store._write

    def write_and_be_late(*args: object) -> None:
        write(*args)
        monkeypatch.setattr(store, "_write", write)
        generate_scenes(tmp_path, "train", 3, size=48)

    monkeypatch.setattr(store, "_write", write_and_be_late)
    generate_scenes(tmp_path, "train", 3, size=48)
    assert len(list((tmp_path / "train").iterdir())) == 3
    assert sorted(f.name for f in tmp_path.iterdir()) == ["annotations", "train"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0},
        {"size": 8},
        {"size": 5000},
        {"seed": -1},
        {"split": "../x"},
        {"split": ""},
        {"split": "annotations"},
    ],
)
def test_senseless_parameters_are_refused(tmp_path: Path, wrong: dict[str, object]):
    parameters = {"split": "train", "images": 2, "size": 48, "seed": 0} | wrong
    with pytest.raises(DataError, match="scenes: "):
        generate_scenes(tmp_path, **parameters)
    assert not list(tmp_path.iterdir())


def test_read_scenes(tmp_path: Path):
    data = read_scenes(tmp_path, "train", 10, size=64)
    assert data.classes == CLASSES
    assert data.counts == {}
    assert [r.path for r in data.records] == [tmp_path / "train" / f"{i:06d}.png" for i in range(10)]
    for index, record in enumerate(data.records):
        objects = render_scene(0, "train", index, 64).objects
        assert record.boxes.tolist() == [list(map(float, o.box)) for o in objects]
        assert record.labels.tolist() == [o.label for o in objects]
        assert record.ignore.tolist() == [o.crowd for o in objects]


def test_read_scenes_hands_class_order_on(tmp_path: Path):
    plain = read_scenes(tmp_path, "train", 10, size=64)
    turned = read_scenes(tmp_path, "train", 10, size=64, classes=CLASSES[::-1])
    assert turned.classes == CLASSES[::-1]
    assert all((a.labels + b.labels == 9).all() for a, b in zip(plain.records, turned.records, strict=True))
