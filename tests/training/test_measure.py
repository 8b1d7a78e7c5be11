"""The measurement against gradients taken by hand, and what a run does with it."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from defeat.detectors import FrozenTeacher, capture, faster_rcnn, retinanet
from defeat.detectors.inference import to_unit_range
from defeat.distill import DistillBatch, Distiller, FeatureTerm, HeadTerm, Term, conv3x3_relu, shared_mask
from defeat.errors import ConfigError
from defeat.training.balance import balanced_weights
from defeat.training.gradient_tables import as_csv, chart, figures, gradient_tables, short, strong_losses
from defeat.training.loss_gradients import DETECTION, Measurement, measure
from defeat.training.module import DetectionModule
from defeat.types import Batch, Target
from tests.helpers.narrow import NARROW

SMALL: dict[str, Any] = {
    "backbone": NARROW,
    "min_size": 64,
    "max_size": 64,
    "norm": "batch",
    "trainable_layers": 5,
}
FRCNN: dict[str, Any] = {
    **SMALL,
    "box_head_channels": 16,
    "box_batch_size_per_image": 16,
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 50,
}
NECK = partial(FeatureTerm, object_weight=4.0, background_weight=16.0)
STAGES = partial(
    FeatureTerm,
    maps="stages",
    object_weight=1.0,
    background_weight=2.0,
    mask=shared_mask,
    adapter=conv3x3_relu,
    strides=[16, 32],
)
HEAD = partial(HeadTerm, object_weight=2.0, background_weight=3.0, proposals="student")
ALL = {"neck": NECK, "head": HEAD, "backbone": STAGES}


def batch(seed: int, boxes: list[list[float]] | None = None) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    boxes = [[4.0, 4, 40, 44], [30, 30, 60, 60]] if boxes is None else boxes
    target = Target(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.ones(len(boxes), dtype=torch.int64),
        ignore=torch.zeros(len(boxes), dtype=torch.bool),
        area=torch.ones(len(boxes)),
        index=torch.tensor(0),
    )
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=draws) for _ in range(2)]
    return Batch(images, [target, target])


BATCHES = [batch(1), batch(2)]


def trio(terms: dict[str, Any] | None = None, **more: Any) -> tuple[nn.Module, nn.Module, Distiller]:
    student = faster_rcnn(3, **FRCNN, fpn_channels=8).train()
    teacher = faster_rcnn(3, **{**FRCNN, "backbone": NARROW}, fpn_channels=12)
    teacher = teacher.requires_grad_(False).eval()
    return student, teacher, Distiller(student, teacher, terms=terms or ALL, **more)


def look(
    student: nn.Module,
    teacher: nn.Module,
    distiller: Distiller,
    batches: list[Batch] = BATCHES,
    steps: int = 3,
    sites_alone: bool = False,
) -> Measurement:
    return measure(
        DetectionModule(student, ["a", "b"], teacher=FrozenTeacher(teacher), distiller=distiller),
        batches,
        adapter_steps=steps,
        adapter_rate=1e-3,
        device=torch.device("cpu"),
        sites_alone=sites_alone,
    )


def test_at_the_sites_alone_the_same_is_measured() -> None:
    student, teacher, distiller = trio()
    whole = look(student, teacher, distiller, steps=0)
    sites = look(student, teacher, distiller, steps=0, sites_alone=True)
    assert sites.start.keys() == distiller.weights.keys()
    for name, (maps, strides) in distiller.gradient_sites.items():
        assert sites.start[name].values.equal(whole.start[name].values)
        assert (
            sites.norm(sites.start[name], maps, strides) == whole.norm(whole.start[name], maps, strides) > 0
        )
        other = "stages" if maps == "neck" else "neck"
        assert math.isnan(sites.norm(sites.start[name], other))


def by_hand(student: nn.Module, teacher: nn.Module, distiller: Distiller, one: Batch, name: str) -> Any:
    """Backward of one loss alone through a student that keeps its maps' gradients: neck and stages."""
    student, distiller = copy.deepcopy(student), copy.deepcopy(distiller)
    kept: dict[str, dict[str, Tensor]] = {}

    def keep(where: str) -> Any:
        def hook(module: nn.Module, args: Any, output: dict[str, Tensor]) -> None:
            kept[where] = output
            for x in output.values():
                x.retain_grad()

        return hook

    student.backbone.body.register_forward_hook(keep("stages"))
    student.backbone.register_forward_hook(keep("neck"))
    with capture(student) as seen:
        own = student(to_unit_range(one.images), list(one.targets))
    losses = {**own, DETECTION: sum(own.values()), **distiller(student, FrozenTeacher(teacher), seen, 0.0)}
    losses[name].backward()
    norms = {
        where: [math.nan if x.grad is None else x.grad.norm().item() for x in maps.values()]
        for where, maps in kept.items()
    }
    return losses[name].item(), norms


@pytest.fixture(scope="module")
def sampled_whole() -> tuple[nn.Module, nn.Module, Distiller, Measurement]:
    """A pair whose losses no sampling touches, since all is sampled, and what is measured on it."""
    torch.manual_seed(0)
    student, teacher, distiller = trio()
    student.roi_heads.fg_bg_sampler.batch_size_per_image = 4000
    student.rpn.fg_bg_sampler.batch_size_per_image = 100_000
    return student, teacher, distiller, look(student, teacher, distiller)


@pytest.mark.parametrize(
    "name", ["loss_objectness", DETECTION, "neck_object", "neck_background", "backbone_background"]
)
def test_values_and_norms_are_those_of_a_backward_by_hand(
    name: str, sampled_whole: tuple[nn.Module, nn.Module, Distiller, Measurement]
) -> None:
    student, teacher, distiller, found = sampled_whole
    reading = found.start[name]
    expected = [by_hand(student, teacher, distiller, one, name) for one in BATCHES]
    assert reading.value == pytest.approx(sum(v for v, _ in expected) / 2, rel=1e-4)
    for where in ("neck", "stages"):
        levels = torch.tensor([norms[where] for _, norms in expected])
        strides = [m.stride for m in found.maps if m.maps == where]
        for i, stride in enumerate(strides):
            norm = found.norm(reading, where, [stride])  # type: ignore[arg-type]
            assert norm == pytest.approx(float(levels[:, i].mean()), rel=1e-3, nan_ok=True), (where, stride)
        joint = levels.nansum(1) if levels.isnan().all() else levels.square().nansum(1).sqrt()
        expected_joint = math.nan if levels.isnan().all() else float(joint.mean())
        assert found.norm(reading, where) == pytest.approx(expected_joint, rel=1e-3, nan_ok=True)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured() -> tuple[Distiller, Measurement]:
    torch.manual_seed(0)
    student, teacher, distiller = trio()
    return distiller, look(student, teacher, distiller, steps=40)


def test_levels_add_up_to_the_loss_and_parts_of_the_detection_loss_to_its_sum(
    measured: tuple[Distiller, Measurement],
) -> None:
    _, found = measured
    assert {name: r.values.shape[1] for name, r in found.fitted.items() if r.values.shape[1] > 1} == {
        "neck_object": 5,
        "neck_background": 5,
        "backbone_object": 2,
        "backbone_background": 2,
    }
    own = [r.value for name, r in found.start.items() if name.startswith("loss_")]
    assert found.start[DETECTION].value == pytest.approx(sum(own), rel=1e-6)
    assert (found.batches, found.images) == (2, 4)


def test_nothing_of_the_pair_moves_and_no_random_number_is_spent() -> None:
    student, teacher, distiller = trio({**ALL, "head": partial(HEAD, proposals="teacher")})
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (student, teacher, distiller)]
    state = torch.get_rng_state()
    look(student, teacher, distiller)
    assert torch.equal(torch.get_rng_state(), state)
    for module, old in zip((student, teacher, distiller), before, strict=True):
        assert all(torch.equal(v, old[k]) for k, v in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
        assert sum(len(m._forward_hooks) for m in module.modules()) == 0
    assert student.training


def test_the_first_process_measures_without_the_others(tmp_path: Path) -> None:
    """A layer that asked them for statistics would wait for ever; torch refuses that on a CPU."""
    student, teacher, distiller = trio()
    found = look(student, teacher, distiller)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(student)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        again = look(synchronised, teacher, distiller)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(
        [*again.start.values()], [*found.start.values()], rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(
        [*again.fitted.values()], [*found.fitted.values()], rtol=0, atol=0, equal_nan=True
    )
    assert nn.SyncBatchNorm in {type(layer) for layer in synchronised.modules()}


def test_fitting_moves_adapted_terms_alone_and_brings_their_losses_down(
    measured: tuple[Distiller, Measurement],
) -> None:
    distiller, found = measured
    for name in found.start:
        start, fitted = found.start[name], found.fitted[name]
        if name.startswith(("neck", "backbone")):
            maps, strides = distiller.gradient_sites[name]
            assert fitted.value < start.value
            # The trap: with adapters that begin at 1e-4 there is next to nothing to see.
            assert found.norm(fitted, maps, strides) > 2 * found.norm(start, maps, strides)
        else:
            assert fitted is start
    assert list(found.start) == list(found.fitted)


def test_the_fit_is_the_same_whatever_the_weights() -> None:
    student, teacher, distiller = trio()
    once = look(student, teacher, distiller)
    distiller.set_weights({"neck_object": 8.0, "backbone_background": 0.002})
    again = look(student, teacher, distiller)
    for name, factor in (("neck_object", 2), ("neck_background", 1), ("backbone_background", 1e-3)):
        old, new = once.fitted[name].squares, again.fitted[name].squares
        torch.testing.assert_close(new, factor**2 * old, rtol=1e-3, atol=0, equal_nan=True)


def test_balanced_weights_give_the_shares_asked_for() -> None:
    student, teacher, distiller = trio(share=0.5, shares={"head_object": 2.0, "backbone_object": 0.01})
    weights = balanced_weights(distiller, look(student, teacher, distiller))
    assert all(weight == float(f"{weight:.4g}") > 0 for weight in weights.values())
    distiller.set_weights(weights)
    found = look(student, teacher, distiller)
    shares = {f.loss: f.fitted for f in figures(found, distiller) if f.kind == "share"}
    assert list(distiller.shares) == list(distiller.weights) == list(ALL_LOSSES)
    for name in distiller.weights:
        maps, strides = distiller.gradient_sites[name]
        detection = found.norm(found.fitted[DETECTION], maps, strides)
        share = found.norm(found.fitted[name], maps, strides) / detection
        assert share == pytest.approx(distiller.shares[name], rel=1e-3)
        assert name in shares
    # A second time nothing changes: the weights do not depend on those they come from.
    assert balanced_weights(distiller, found) == pytest.approx(distiller.weights, rel=2e-3)


ALL_LOSSES = [f"{term}_{part}" for term in ALL for part in ("object", "background")]


def test_a_loss_without_gradient_is_refused_in_one_line() -> None:
    student, teacher, distiller = trio({"neck": NECK})
    empty = [batch(1, []), batch(2, [])]
    found = look(student, teacher, distiller, empty)
    with pytest.raises(
        ConfigError, match=r"neck_object has no gradient .* on the 2 measured batches"
    ) as error:
        balanced_weights(distiller, found)
    assert "raise callbacks.measure.batches" in str(error.value)
    assert "distiller.terms.neck.object_weight=0" in str(error.value)
    assert "\n" not in str(error.value)


def test_frozen_stages_have_no_gradient_to_balance_by() -> None:
    student, teacher, distiller = trio({"backbone": STAGES})
    for p in student.backbone.body.parameters():
        p.requires_grad_(False)
    found = look(student, teacher, distiller)
    assert math.isnan(found.norm(found.fitted[DETECTION], "stages"))
    assert found.norm(found.fitted[DETECTION], "neck") > 0
    with pytest.raises(ConfigError, match="no gradient at the student's stages"):
        balanced_weights(distiller, found)
    assert "Gradient at the student's backbone stages" not in str(
        [s.title for s in gradient_tables(found, distiller)]
    )


def test_one_stage_detectors_and_losses_without_parts() -> None:
    class Size(Term):
        weight_keys: ClassVar[dict[str, str]] = {"": "scale"}

        def __init__(self, student: Any, teacher: Any, scale: float = 3.0) -> None:
            super().__init__({"": scale})

        def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
            maps = batch.student_captures.neck.values()
            return self.weighted({"": torch.stack([x.square().mean() for x in maps]).sum()})

    student = retinanet(3, **SMALL, fpn_channels=8).train()
    teacher = retinanet(3, **SMALL, fpn_channels=8).requires_grad_(False).eval()
    distiller = Distiller(student, teacher, terms={"size": Size})
    assert distiller.weights == {"size": 3.0}
    assert distiller.gradient_sites["size"].strides == (8, 16, 32, 64, 128)
    assert distiller.key("size") == "distiller.terms.size.scale"
    distiller.set_weights(balanced_weights(distiller, look(student, teacher, distiller)))
    found = look(student, teacher, distiller)
    share = found.norm(found.fitted["size"], "neck") / found.norm(found.fitted[DETECTION], "neck")
    assert share == pytest.approx(1, rel=1e-3)


def test_a_part_of_weight_0_is_no_loss() -> None:
    _, _, distiller = trio({"neck": partial(NECK, object_weight=0.0)})
    assert distiller.weights == {"neck_background": 16.0}
    assert distiller.shares == {"neck_background": 1.0}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"balance": "norm"}, "distiller.balance must be null or gradient, got 'norm'"),
        (
            {"shares": {"neck": 1.0}},
            "there is no loss 'neck', only neck_object, neck_background, head_",
        ),
        ({"share": 0.0}, "the share of neck_object must be positive, got 0"),
        ({"shares": {"head_object": math.inf}}, "the share of head_object must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        trio(**more)


def test_half_precision_loses_no_gradient() -> None:
    student, teacher, distiller = trio({"neck": NECK})
    exact = look(student, teacher, distiller)
    half = measure(
        DetectionModule(student, ["a", "b"], teacher=FrozenTeacher(teacher), distiller=distiller),
        BATCHES,
        adapter_steps=5,
        adapter_rate=1e-3,
        device=torch.device("cpu"),
        precision=partial(torch.autocast, "cpu", dtype=torch.float16),
    )
    for name in ("neck_object", "neck_background"):
        a, b = (m.norm(m.start[name], "neck") for m in (exact, half))
        assert b == pytest.approx(a, rel=0.05)


def test_losses_that_outweigh_the_students_are_told_with_a_weight_that_does_not(
    measured: tuple[Distiller, Measurement],
) -> None:
    distiller, found = measured
    name = next(iter(distiller.weights))
    maps, strides = distiller.gradient_sites[name]
    detection = found.norm(found.fitted[DETECTION], maps, strides)
    own = found.norm(found.fitted[name], maps, strides)
    scale = 50 * detection / own  # as if its weight were so much larger
    strong = found._replace(
        fitted={
            loss: reading._replace(squares=reading.squares * scale**2) if loss == name else reading
            for loss, reading in found.fitted.items()
        }
    )
    weights = distiller.weights
    text = dict(strong_losses(strong, distiller))[f"{name} pulls 50 times as hard as the student's own loss"]
    assert text.startswith(f"distiller.balance=gradient, or a weight of {short(weights[name] / 50)} (")
    weak = found._replace(
        fitted={
            loss: reading if loss == DETECTION else reading._replace(squares=reading.squares * 0)
            for loss, reading in found.fitted.items()
        }
    )
    assert strong_losses(weak, distiller) == []


def test_figures_fill_tables_csv_and_chart(measured: tuple[Distiller, Measurement]) -> None:
    distiller, found = measured
    numbers = list(figures(found, distiller))
    neck, stages, values = gradient_tables(found, distiller)
    assert neck.columns == ["loss", "start", "4", "8", "16", "32", "64", "all", "share"]
    assert stages.columns == ["loss", "start", "4", "8", "16", "32", "all", "share"]
    rows = {row[0]: row for row in neck.rows}
    assert "backbone_object" not in rows, "a stage's loss does not reach the neck"
    assert rows[DETECTION][-1] == "1"
    stage_rows = {row[0]: row for row in stages.rows}
    assert stage_rows["backbone_object"][2:4] == ["-", "-"], "not among the strides it compares"
    assert stage_rows["neck_object"][2] != "-"
    assert all(len(cell) <= 6 for sheet in (neck, stages) for row in sheet.rows for cell in row[1:])
    assert {row[0]: row[1] for row in values.rows}["neck_background"] == "16"
    lines = as_csv(numbers).splitlines()
    assert lines[0] == "kind,loss,maps,stride,start,fitted"
    assert len(lines) == 1 + len(numbers)
    (axes,) = chart(numbers).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    start, fitted = ([bar.get_width() for bar in bars] for bars in axes.containers)  # type: ignore[attr-defined]
    row = names.index("neck_object at the neck")
    for widths, measured_then in ((start, found.start), (fitted, found.fitted)):
        own, all_own = (found.norm(measured_then[loss], "neck") for loss in ("neck_object", DETECTION))
        assert widths[row] == pytest.approx(own / all_own)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (math.nan, "-"),
        (0.0, "0"),
        (1.0, "1"),
        (0.01234, "0.0123"),
        (0.00999, "1.0e-2"),
        (1.23e-5, "1.2e-5"),
        (999.4, "999"),
        (1234.0, "1.2e3"),
        (math.inf, "inf"),
    ],
)
def test_numbers_take_six_characters(number: float, text: str) -> None:
    assert short(number) == text
