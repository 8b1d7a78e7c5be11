"""Kinds of errors: by hand, against the authors' package, and against a second, plain implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defeat.evaluation.coco_metrics import coco_metrics
from defeat.report.tide import KINDS, SPECIAL, tide
from tests.helpers.report_cases import counted_out_case, detect, image_result, random_truth

BOX = (0, 0, 100, 100)
"""Of ground truth; the detections below overlap it by 1, 0.8, 0.3 and 0.05."""
WHOLE, GOOD, POOR, SLIGHT = BOX, (0, 0, 100, 80), (0, 0, 100, 30), (0, 0, 100, 5)
ELSEWHERE = (300, 300, 350, 350)


def errors(found, true, crowd=(), classes=2):
    return tide([image_result(found, true, crowd)], classes)


def kinds(result):
    """Those that there are, without the totals."""
    return {name: n for name, n in result.counts.items() if n and name in KINDS}


@pytest.mark.parametrize(
    ("detection", "label", "kind"),
    [(POOR, 1, "Loc"), (GOOD, 2, "Cls"), (POOR, 2, "Both"), (SLIGHT, 1, "Bkg"), (ELSEWHERE, 2, "Bkg")],
)
def test_each_kind_by_itself(detection, label, kind):
    result = errors([(*detection, 0.9, label)], [(*BOX, 1)])
    missed = {} if kind in ("Loc", "Cls") else {"Miss": 1}  # those two would find it
    assert kinds(result) == {kind: 1, **missed}
    assert result.ap50 == 0
    assert result.counts["FalsePos"] == result.counts["FalseNeg"] == 1
    assert result.gains[kind] == (1 if kind in ("Loc", "Cls") else 0)


def test_the_bounds_of_overlap():
    half, tenth = (0, 0, 100, 50), (0, 0, 100, 10)
    assert kinds(errors([(*half, 0.9, 1)], [(*BOX, 1)])) == {}
    assert kinds(errors([(*half, 0.9, 2)], [(*BOX, 1)])) == {"Cls": 1}
    assert kinds(errors([(*WHOLE, 0.9, 1), (*half, 0.8, 1)], [(*BOX, 1)])) == {"Loc": 1}
    assert kinds(errors([(*tenth, 0.9, 1)], [(*BOX, 1)])) == {"Loc": 1}
    assert kinds(errors([(*tenth, 0.9, 2)], [(*BOX, 1)])) == {"Bkg": 1, "Miss": 1}


def test_a_second_detection_is_a_duplicate_and_costs_where_it_comes_before_a_hit():
    far = (200, 200, 300, 300)
    found = [(*WHOLE, 0.9, 1), (*GOOD, 0.8, 1), (*far, 0.7, 1)]
    result = errors(found, [(*BOX, 1), (*far, 1)])
    assert kinds(result) == {"Dupe": 1}
    # recall 1/2 at precision 1 for 51 of the 101 recalls, then 1 at precision 2/3
    assert result.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.gains["Dupe"] == pytest.approx(1 - result.ap50)
    assert result.gains["FalsePos"] == pytest.approx(1 - result.ap50)
    assert result.gains["FalseNeg"] == 0


def test_detections_on_a_crowd_of_their_class_are_no_false_positives():
    true = [(*BOX, 1), (200, 200, 400, 400, 1)]
    inside = (220, 220, 260, 260)
    found = [(*inside, 0.9, 1), (*WHOLE, 0.8, 1)]
    result = errors(found, true, crowd=[1])
    assert (result.ap50, result.counts["FalsePos"]) == (1, 0)
    other = errors([(*inside, 0.9, 2), (*WHOLE, 0.8, 1)], [*true, (600, 0, 650, 50, 2)], crowd=[1])
    assert other.counts["FalsePos"] == 1
    assert errors(found, true).ap50 < 1


def test_the_100_best_of_an_image_count():
    rows = [(*ELSEWHERE, 0.9 - n / 1000, 1 + n % 2) for n in range(100)]
    result = errors([*rows, (*WHOLE, 0.1, 1)], [(*BOX, 1), (*BOX, 2)])
    assert kinds(result) == {"Bkg": 100, "Miss": 2}


def test_classes_without_ground_truth_are_left_out():
    result = errors([(*WHOLE, 0.9, 1), (*ELSEWHERE, 0.9, 2)], [(*BOX, 1)])
    assert (result.ap50, result.counts["Bkg"], result.gains["Bkg"]) == (1, 1, 0)
    nothing = errors([(*WHOLE, 0.9, 1)], [])
    assert np.isnan([nothing.ap50, *nothing.gains.values()]).all()


def test_the_figures_of_the_authors_package():
    # Made by tidecv 1.0.1 from PyPI on the same images: add_ground_truth, add_ignore_region, add_detection,
    # then fix_main_errors(), fix_special_errors() and count_errors() of TIDE().evaluate(..., mode=TIDE.BOX).
    result = tide(counted_out_case(), 3)
    assert result.ap50 == pytest.approx(0.17439201972979718, abs=1e-12)
    assert result.gains == pytest.approx(
        {
            "Cls": 0.1643611419,
            "Loc": 0.1504896665,
            "Both": 0.0067272101,
            "Dupe": 0.0146427612,
            "Bkg": 0.0447654688,
            "Miss": 0.0340771598,
            "FalsePos": 0.3668621057,
            "FalseNeg": 0.1494832094,
        },
        abs=1e-9,
    )
    counts = {"Cls": 26, "Loc": 36, "Both": 9, "Dupe": 21, "Bkg": 32, "Miss": 10}
    assert {kind: result.counts[kind] for kind in KINDS} == counts


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 9), whole=st.booleans())
def test_as_a_plain_implementation(seed, images, whole):
    rng = np.random.default_rng(seed)
    results = detect(rng, random_truth(rng, images, whole=whole), whole=whole, jitter=12)
    counts, before, gains = plain_tide(results, 3)
    result = tide(results, 3)
    assert result.counts == counts
    assert result.ap50 == pytest.approx(before, abs=1e-12, nan_ok=True)
    assert result.gains == pytest.approx(gains, abs=1e-12, nan_ok=True)


def test_without_crowds_the_ap50_is_that_of_coco():
    rng = np.random.default_rng(5)
    truth = [image._replace(ignore=image.ignore & False) for image in random_truth(rng, 12, whole=False)]
    images = detect(rng, truth, whole=False)
    coco, _ = coco_metrics(images, ("ant", "bee", "cow"))
    assert tide(images, 3).ap50 == pytest.approx(coco["AP50"], abs=1e-7)


def iou(a, b, of_first=False):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = ((r[2] - r[0]) * (r[3] - r[1]) for r in (a, b))
    return width * height / (area_a if of_first else area_a + area_b - width * height)


def plain_tide(images, classes):
    """Section 2 of the paper, detection by detection, with the choices that defeat.report.tide names."""
    detections, truths = [], []
    for image in images:
        rows = zip(image.boxes.tolist(), image.scores.tolist(), image.labels.tolist(), strict=True)
        mine = [{"box": b, "score": s, "label": k, "kind": "", "fix": None} for b, s, k in rows]
        mine = sorted(mine, key=lambda d: -d["score"])[:100]
        rows = zip(image.true_boxes.tolist(), image.true_labels.tolist(), image.ignore.tolist(), strict=True)
        every = [{"box": b, "label": k, "crowd": c, "by": None, "claim": None} for b, k, c in rows]
        true = [g for g in every if not g["crowd"]]
        for d in mine:
            free = [g for g in true if g["label"] == d["label"] and g["by"] is None]
            best = max(free, key=lambda g: iou(d["box"], g["box"]), default=None)
            if best and iou(d["box"], best["box"]) >= 0.5:
                d["kind"], best["by"] = "hit", d
        for d in mine:
            d["ignored"] = d["kind"] != "hit" and any(
                g["crowd"] and g["label"] == d["label"] and iou(d["box"], g["box"], True) > 0.5 for g in every
            )
            if d["kind"] == "hit":
                continue
            same = [g for g in true if g["label"] == d["label"]]
            other = [g for g in true if g["label"] != d["label"]]
            best_same = max(same, key=lambda g: iou(d["box"], g["box"]), default=None)
            best_other = max(other, key=lambda g: iou(d["box"], g["box"]), default=None)
            to_same = iou(d["box"], best_same["box"]) if best_same else 0.0
            to_other = iou(d["box"], best_other["box"]) if best_other else 0.0
            target = None
            if 0.1 <= to_same <= 0.5:
                d["kind"], target = "Loc", best_same
            elif to_other >= 0.5:
                d["kind"], target = "Cls", best_other
            elif any(g["by"] and iou(d["box"], g["box"]) >= 0.5 for g in same):
                d["kind"] = "Dupe"
            else:
                d["kind"] = "Bkg" if max(to_same, to_other) <= 0.1 else "Both"
            if target and target["by"] is None and target["claim"] is None:
                target["claim"], d["fix"] = d, target["label"]
        detections += mine
        truths += true

    present = {g["label"] for g in truths}

    def mean_ap(fixed=None, without=lambda g: False, only_hits=False):
        values = []
        for label in present:
            entries = []
            for d in sorted(detections, key=lambda d: -d["score"]):
                if d["kind"] == fixed:
                    if d["fix"] == label:
                        entries.append(True)
                elif d["label"] == label and not d["ignored"] and (d["kind"] == "hit" or not only_hits):
                    entries.append(d["kind"] == "hit")
            positives = sum(g["label"] == label and not without(g) for g in truths)
            if positives:
                values.append(plain_ap(entries, positives))
            elif entries:
                values.append(0.0)
        return sum(values) / len(values) if values else np.nan

    def missed(g):
        return g["by"] is None and g["claim"] is None

    before = mean_ap()
    after = {kind: mean_ap(kind) for kind in KINDS[:5]}
    after["Miss"] = mean_ap(without=missed)
    after["FalsePos"] = mean_ap(only_hits=True)
    after["FalseNeg"] = mean_ap(without=lambda g: g["by"] is None)
    counts = {kind: sum(d["kind"] == kind for d in detections) for kind in KINDS[:5]}
    counts["Miss"] = sum(map(missed, truths))
    counts["FalsePos"] = sum(d["kind"] != "hit" and not d["ignored"] for d in detections)
    counts["FalseNeg"] = sum(g["by"] is None for g in truths)
    gains = {name: np.nan if np.isnan(after[name]) else max(after[name] - before, 0) for name in after}
    assert list(gains) == [*KINDS, *SPECIAL]
    return counts, before, gains


def plain_ap(entries, positives):
    """COCO's: at each of 101 recalls the best precision that is reached at that recall or above."""
    points = [
        (sum(entries[: n + 1]) / positives, sum(entries[: n + 1]) / (n + 1)) for n in range(len(entries))
    ]
    levels = np.linspace(0, 1, 101)
    return float(np.mean([max((p for r, p in points if r >= level), default=0.0) for level in levels]))
