"""A compiled backbone computes what it did, once for each shape, whatever hooks come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torchvision.models.detection import ssd300_vgg16

from defeat.detectors import FrozenTeacher, faster_rcnn, retinanet
from defeat.detectors.compiled_backbone import COMPILE_MODES
from defeat.detectors.teacher_precision import optimize_for_inference
from defeat.errors import ConfigError
from defeat.run.train import train
from tests.helpers.narrow import NARROW
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher

# Inductor of torch 2.11 about itself, when it is imported and where it tunes; nothing to mend here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated.*:UserWarning"),
]

SHAPES = ((64, 64), (64, 96))


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Torch counts shapes by code, which all backbones share."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def built(build: Callable[..., nn.Module] = faster_rcnn) -> FrozenTeacher:
    few = {"returned_layers": (1, 2), "anchor_sizes": None}  # tracing takes its time for each layer
    return FrozenTeacher(build(3, backbone=NARROW, fpn_channels=16, **few))


def all_maps(teacher: FrozenTeacher, images: Tensor) -> dict[str, Tensor]:
    """All maps of a teacher, as a distillation reads them."""
    captured = teacher.features(images)
    maps = {"stages": captured.stages, "neck": captured.neck}
    return {f"{kind} {name}": x for kind, own in maps.items() for name, x in own.items()}


class Backend:
    """Counts what it is given to compile, and returns it as it is."""

    def __init__(self) -> None:
        self.graphs = 0
        self.dynamic = False
        """Whether one of them was for any shape."""

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor], **options: Any) -> Callable[..., Any]:
        self.graphs += 1
        sizes = [size for x in inputs if isinstance(x, Tensor) for size in x.shape]
        self.dynamic |= not all(
            type(size) is int for size in (*inputs, *sizes) if not isinstance(size, Tensor)
        )
        return graph.forward


class Replaying(Backend):
    """Writes all results of a graph to the same place, as a CUDA graph does."""

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor], **options: Any) -> Callable[..., Any]:
        place: list[Tensor] = []

        def run(*args: Any) -> tuple[Tensor, ...]:
            found = graph(*args)
            if not place:
                place.extend(x.clone() for x in found)
            return tuple(own.copy_(x) for own, x in zip(place, found, strict=True))

        return run


@pytest.mark.parametrize("build", [faster_rcnn, retinanet])
def test_hooks_see_all_maps_and_nothing_is_compiled_twice(build: Callable[..., nn.Module]) -> None:
    detector, backend = built(build), Backend()
    batches = [torch.randn(2, 3, *shape) for shape in SHAPES]
    exact = [all_maps(detector, images) for images in batches]
    detector.compile_backbone("default", backend=backend)
    for _ in range(2):
        for images, own in zip(batches, exact, strict=True):
            torch.testing.assert_close(all_maps(detector, images), own)
        assert backend.graphs == 2 * len(SHAPES), "body and pyramid, once a shape"
    assert not backend.dynamic


def test_the_body_is_compiled_alone_where_no_pyramid_is_wanted() -> None:
    detector, backend = built(), Backend()
    images = torch.randn(1, 3, 64, 64)
    exact = detector.features(images, neck=False).stages
    detector.compile_backbone("default", backend=backend)
    torch.testing.assert_close(detector.features(images, neck=False).stages, exact)
    assert backend.graphs == 1


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_maps_outlast_the_next_replay_of_a_graph(mode: Any) -> None:
    detector = built()
    first, second = torch.randn(2, 1, 3, 64, 64)
    exact = [all_maps(detector, images) for images in (first, second)]
    detector.compile_backbone(mode, backend=Replaying())
    found = [all_maps(detector, images) for images in (first, second)]
    torch.testing.assert_close(found, exact)


def test_every_detector_of_a_process_is_compiled() -> None:
    """As in a sweep: torch counts all of them against one limit."""
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(2):
            detector, backend = built(), Backend()
            detector.compile_backbone("default", backend=backend)
            all_maps(detector, torch.randn(1, 3, 64, 64))
            assert backend.graphs == 2


def test_more_shapes_than_torch_compiles_are_computed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    detector, backend = built(), Backend()
    batches = [torch.randn(1, 3, *shape) for shape in SHAPES]
    exact = [all_maps(detector, images) for images in batches]
    detector.compile_backbone("default", backend=backend)
    with torch._dynamo.config.patch(recompile_limit=1):
        torch.testing.assert_close([all_maps(detector, images) for images in batches], exact)
    assert backend.graphs == 2
    assert "hit config.recompile_limit (1)" in caplog.text


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_teacher_in_another_precision_compiles(precision: Any) -> None:
    detector, backend = built(), Backend()
    images = torch.randn(1, 3, 64, 64)
    optimize_for_inference(detector, images, precision)
    exact = all_maps(detector, images)
    detector.compile_backbone("default", backend=backend)
    for _ in range(3):
        torch.testing.assert_close(all_maps(detector, images), exact)
    assert backend.graphs == 2


def test_a_backbone_without_a_pyramid_is_refused() -> None:
    with torch.device("meta"):
        teacher = FrozenTeacher(ssd300_vgg16(weights=None, weights_backbone=None))
    with pytest.raises(
        ConfigError, match="compile=default is for a backbone with a pyramid, and that of SSD"
    ):
        teacher.compile_backbone("default")


@pytest.mark.slow
@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_kernels_of_inductor_agree(mode: Any) -> None:
    detector = built()
    images = torch.randn(1, 3, 64, 64)
    exact = all_maps(detector, images)
    counters.clear()
    detector.compile_backbone(mode)
    for _ in range(3):
        torch.testing.assert_close(all_maps(detector, images), exact, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2


def test_a_run_compiles_its_teacher_and_trains_alike(
    scenes: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend()

    own = FrozenTeacher.compile_backbone

    def compiled(teacher: FrozenTeacher, mode: Any) -> None:
        assert mode == "default"
        own(teacher, mode, backend=backend)

    monkeypatch.setattr(FrozenTeacher, "compile_backbone", compiled)
    losses = []
    for name, more in (("plain", []), ("compiled", ["teacher.compile=default"])):
        words = tiny(tmp_path / name, scenes, *tiny_teacher(teacher), "~logger", *more)
        losses.append(train(tiny_config("scenes", words)).metrics)
        assert backend.graphs == (0 if name == "plain" else 2)
    for key in ("distill/neck_object", "distill/head_background", "train/loss"):
        assert losses[1][key] == pytest.approx(losses[0][key], rel=1e-4), key


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "teacher.compile=fast",
            "a teacher's compile must be default, reduce-overhead, max-autotune or null, got 'fast'",
        ),
        ("student.compile=default", "student.compile=default is for teachers alone"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    word: str, message: str, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    words = tiny(tmp_path / "run", scenes, *tiny_teacher(teacher), "~logger", word)
    with pytest.raises(ConfigError, match=message):
        train(tiny_config("scenes", words))
