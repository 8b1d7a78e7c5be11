"""What the benchmarks compare is the same work on the same numbers; and every script runs."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any, cast

import case as cases
import pytest
import torch
from case import TINY, Case, Floor, Kind, distilled, random_batch, student_alone, usual
from memory import Live, explain, measure_step
from step import FEATURES, FLOOR, FULL, GOALS, LEAN, VARIANTS, count_flops, lightning_adds
from torchdistill_step import torchdistill
from torchvision.ops import FrozenBatchNorm2d

from defeat.detectors.adapted.parallel_roi_align import ParallelRoIAlign

SCRIPTS = Path(cases.__file__).parent

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*barebones=True.*"),
    # input.py times torchvision's JPEG decoder beside others
    pytest.mark.filterwarnings("ignore:.*decoding and encoding capabilities of TorchVision.*"),
]


@pytest.fixture(scope="module")
def case() -> Case:
    return Case((64, 64), 2, 3, overrides=TINY)


@pytest.mark.parametrize(
    "kind", ["full", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("features", "lean", "plain"))]
)
def test_the_usual_design_has_the_same_loss_bit_for_bit(case: Case, kind: Kind) -> None:
    ours, theirs = distilled(case, kind), usual(case, kind)
    assert ours().equal(theirs())
    assert ours().equal(ours())


def test_no_step_moves_a_weight(case: Case) -> None:
    before = {name: value.clone() for name, value in case.student.state_dict().items()}
    floor, ours = Floor(case), distilled(case, "full")
    for _ in range(2):
        floor.student_step()
        floor.second_pass()
        ours()
    assert all(value.equal(before[name]) for name, value in case.student.state_dict().items())


def test_the_floors_student_is_the_student_that_is_distilled(case: Case) -> None:
    assert Floor(case).student_step().equal(student_alone(case)())


def test_the_floor_pools_as_torchvision_does_and_ours_as_we_do(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[None] = []
    own = ParallelRoIAlign.forward
    monkeypatch.setattr(ParallelRoIAlign, "forward", lambda *args: shared.append(None) or own(*args))
    floor, ours = Floor(case), student_alone(case)
    shared.clear()
    for part in ("student", "head", "second"):
        FLOOR[part][1](floor)
    usual(case, "features")()
    assert not shared
    ours()
    assert shared


@pytest.mark.parametrize(("kind", "parts"), [("features", FEATURES), ("lean", LEAN), ("full", FULL)])
def test_a_step_has_the_operations_of_its_floor_and_no_more(
    case: Case, kind: Kind, parts: tuple[str, ...]
) -> None:
    floor = Floor(case)
    needed = sum(count_flops(lambda own=FLOOR[part][1]: own(floor)) for part in parts)
    assert count_flops(distilled(case, kind)) == needed > 0


def test_the_floors_parts_leave_gradients_where_they_learn_alone(case: Case) -> None:
    floor = Floor(case)
    case.student.zero_grad()
    for part in ("backbone", "adapters", "head", "rpn"):
        FLOOR[part][1](floor)
    assert all(p.grad is None for p in [*case.student.parameters(), *case.teacher.parameters()])
    adapters = list(case.distiller("features").parameters())
    assert adapters
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapters)
    floor.second_pass()
    heads = cast(Any, case.student).roi_heads
    scored = [*heads.box_head.parameters(), heads.box_predictor.cls_score.weight]
    assert all(p.grad is not None for p in scored)


def test_the_detectors_propose_as_many_boxes_as_they_sample(case: Case) -> None:
    floor = Floor(case)
    for proposals in (floor.seen.proposals, floor.proposals):
        assert [len(boxes) for boxes in proposals] == [16, 16]  # box_batch_size_per_image


def test_activations_have_a_trained_networks_size(case: Case) -> None:
    outputs: list[torch.Tensor] = []
    norms = [module for module in case.teacher.modules() if isinstance(module, FrozenBatchNorm2d)]
    # copies: the ReLU behind works in place
    handles = [norm.register_forward_hook(lambda _, args, y: outputs.append(y.clone())) for norm in norms]
    with torch.no_grad():
        cast(Any, case.teacher).backbone(case.transformed()[0].tensors)
    for handle in handles:
        handle.remove()
    assert len(outputs) == len(norms) > 0
    assert all(abs(float(y.mean())) < 1e-3 for y in outputs)
    scales = [round(float(y.std(correction=0)), 2) for y in outputs]
    assert set(scales) <= {1.0, cases.RESIDUAL}
    assert scales.count(cases.RESIDUAL) == 4  # one for each block of a ResNet-10


def test_boxes_lie_inside_the_image() -> None:
    targets = random_batch((40, 60), 3, 50).targets
    boxes = torch.cat([target["boxes"] for target in targets])
    assert boxes.shape == (150, 4)
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    assert bool((boxes >= 0).all() and (boxes <= torch.tensor([60, 40, 60, 40])).all())


def test_torchdistill_has_the_loss_of_plain(case: Case) -> None:
    pytest.importorskip("torchdistill")
    theirs, ours = torchdistill(case), distilled(case, "plain")
    # Its teacher, in training mode, draws random numbers before the student does.
    handle = case.student.register_forward_pre_hook(lambda *_: cases.seed_step())
    try:
        expected = ours()
        found = theirs()
    finally:
        handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    alone = student_alone(case)()
    assert expected > 1.1 * alone  # the term is no rounding error


def test_every_goal_is_of_variants_that_exist() -> None:
    for goal in GOALS:
        assert {*goal.over, *goal.under} <= set(VARIANTS)


@pytest.mark.slow
def test_lightning_adds_to_every_step_after_the_first_ones() -> None:
    assert len(lightning_adds(5).seconds) == 2


def test_live_bytes_of_a_function_whose_peak_is_known() -> None:
    def work() -> torch.Tensor:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        view = b[:10]
        view += 1
        del a
        c = b.double()  # 8,000; with b 12,000 and the peak
        del b, view
        return c.sum()

    kept = torch.zeros(500)
    with Live([kept]) as live:
        work()
    assert live.peak == 2000 + 12_000
    assert live.bytes == 2000
    with Live([kept], stop=live.peak_at) as again:
        work()
    assert sorted((one.size, one.made_by) for one in again.found) == [
        (2000, "before"),
        (4000, "aten.add.Tensor"),
        (8000, "aten._to_copy.default"),
    ]


def test_memory_of_a_step_counts_what_it_holds(case: Case) -> None:
    student, found = measure_step(case, student_alone(case)), measure_step(case, distilled(case, "features"))
    learning = [p for p in case.student.parameters() if p.requires_grad]
    frozen = [p for p in case.student.parameters() if not p.requires_grad]
    buffers = [*case.student.buffers(), *(x for t in case.batch.targets for x in cast(Any, t).values())]
    weights = sum(p.numel() for p in learning)
    rest = sum(x.untyped_storage().nbytes() for x in [*frozen, *buffers]) + 2 * 3 * 64 * 64
    assert student.held == 2 * 4 * weights + rest  # weight, momentum
    adapters = sum(p.numel() for p in case.distiller("features").parameters())
    assert found.adapters == 3 * 4 * adapters  # and gradient
    teacher = sum(x.nbytes for x in [*case.teacher.parameters(), *case.teacher.buffers()])
    cells, strides = 2 * 64 * 64 * 4, (4, 8, 16, 32, 64)
    neck = sum(8 * cells // stride**2 for stride in strides)
    assert found.needed == teacher + neck + 256 * cells // 16**2 + 512 * cells // 32**2
    assert found.peak > student.peak + found.needed > found.needed


def test_what_is_alive_at_the_peak_is_told_by_module(case: Case) -> None:
    training = distilled(case, "lean")
    text = explain(training, largest=5)
    sums = dict(re.findall(r"^\| ([a-z].*) \| ([\d.]+) \|$", text, re.MULTILINE))
    assert sums.keys() >= {"weights, states", "student.rpn"}
    peak = float(re.findall(r"peak of ([\d.]+) MiB", text)[0])
    assert sum(map(float, sums.values())) == pytest.approx(peak, abs=0.05 * len(sums))
    assert measure_step(case, training).peak / 2**20 == pytest.approx(peak, abs=0.06)


SMALL = ["--size", "64", "64", "--overrides", *TINY]
STEPS = ["--variants", "student", "backbone", "adapters", "features", "features-auto", "usual"]

GPU = ["--tiny", "--device", "cpu", "--kinds", "features", "--settings", "default", "--compile"]

RUNS: dict[str, list[str]] = {
    "commands.py": ["--rounds", "1"],
    "step.py": [*STEPS, "--boxes", "3", "--rounds", "1", "--lightning", "4", *SMALL],
    "memory.py": ["--variants", "features", "--no-rss", "--explain", "student", *SMALL],
    "losses.py": ["--boxes", "3", "--rounds", "1", *SMALL],
    "evaluation.py": ["--images", "20", "--detections", "5", "--rounds", "1"],
    "start_up.py": ["--images", "40", "--boxes", "300", "--rounds", "1", "--json", "start_up.json"],
    "input.py": ["--images", "16", "--rounds", "1", "--passes", "1", "--workers", "1"],
    "teacher.py": ["--rounds", "1", "--size", "64", "96"],
    "growth.py": ["--rounds", "1", "--shrink", "5", "--figure", "growth.png"],
    "gpu.py": [
        *GPU,
        "--size",
        "64",
        "64",
        "--batch",
        "2",
        "--rounds",
        "1",
        "--side",
        "64",
        "--precision",
        "32",
    ],
}
"""The smallest run of every script, in a folder of its own."""

NEEDS_PHOTOS = {"input.py", "teacher.py"}
NOT_RUN = {"case.py", "measure.py", "torchdistill_step.py", "gradient_shares.py", "teacher_gradients.py"}
"""Parts of others; and hundreds of steps of training."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_script_prints_tables_under_a_heading(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name in NEEDS_PHOTOS:
        request.getfixturevalue("shared")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *RUNS[name]])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    out = capsys.readouterr().out
    assert out.startswith("### ")
    assert "\n| --- |" in out


def test_every_script_is_run() -> None:
    assert RUNS.keys() | NOT_RUN == {path.name for path in SCRIPTS.glob("*.py")}
