"""From run folders to tables, Markdown, CSV and pictures."""

import csv
import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import ttest_rel

from defeat.errors import ConfigError
from defeat.evaluation.coco_metrics import coco_metrics
from defeat.evaluation.image_result import ImageResult
from defeat.report import make_report
from defeat.report.compare import Comparison, compare
from defeat.report.groups import group_runs
from defeat.report.runs import find_runs
from defeat.report.tide import KINDS
from tests.helpers.report_cases import detect, random_truth, write_run

CLASSES = ("ant", "bee", "cow", "a very long name of a class")
CSV = {"summary.csv", "runs.csv", "classes.csv", "errors.csv", "precision_recall.csv", "confusion.csv"}
WEIGHT = "distiller.terms.neck.object_weight"
LABELS = ["scenes_plain", f"scenes [{WEIGHT}=4]", f"scenes [{WEIGHT}=16]"]


class Made(NamedTuple):
    """A report and what it was made of."""

    comparison: Comparison
    text: str
    folder: Path
    runs: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Of a plain group of three seeds, and two distilled ones, of three and of one seed, better and equal."""
    folder = tmp_path_factory.mktemp("made")
    truth = random_truth(np.random.default_rng(0), 20, classes=3)
    for seed in range(3):
        plain = detect(np.random.default_rng([1, seed]), truth, jitter=9)
        better = detect(np.random.default_rng([2, seed]), truth, jitter=3)
        write_run(folder / "runs" / "plain" / str(seed), plain, seed=seed, classes=CLASSES)
        more = {"experiment": "scenes", "seed": seed, "classes": CLASSES}
        write_run(folder / "runs" / "s" / str(seed), better, changes={WEIGHT: 4}, **more)
        if seed == 0:
            write_run(folder / "runs" / "s" / "one", plain, changes={WEIGHT: 16}, step=300, **more)
    write_run(folder / "runs" / "unfinished", [])
    other = {"splits": {"train": {"sha256": "1"}}}
    (folder / "runs" / "plain" / "0" / "data.json").write_text(json.dumps(other))
    comparison, text = report(folder / "runs", folder / "new" / "report", resamples=200)
    return Made(comparison, text, folder / "new" / "report", folder / "runs")


@pytest.fixture(scope="module")
def few() -> list[ImageResult]:
    rng = np.random.default_rng(0)
    return detect(rng, random_truth(rng, 4))


def report(runs: Path, output: Path | None, width: int = 80, **options) -> tuple[Comparison, str]:
    console = Console(file=io.StringIO(), width=width)
    comparison = make_report([runs], output, console=console, **{"resamples": 20, **options})
    return comparison, console.file.getvalue()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_curves_average_to_ap50_and_confusions_add_up_to_the_objects(made: Made) -> None:
    curves = table(made.folder / "precision_recall.csv")
    rows = {row["group"]: row for row in table(made.folder / "summary.csv")}
    confusion = table(made.folder / "confusion.csv")
    for group in LABELS:
        for iou, figure in (("0.5", "AP50"), ("0.75", "AP75")):
            mean = [
                float(row["precision"])
                for row in curves
                if (row["group"], row["class"], row["IoU"]) == (group, "", iou)
            ]
            assert np.mean(mean) == pytest.approx(float(rows[group][figure]))
        for name, objects in made.comparison.objects.items():
            cells = [c for c in confusion if (c["group"], c["class"]) == (group, name)]
            seeds = len(rows[group]["seeds"].split())
            assert sum(int(c["objects"]) for c in cells) == seeds * objects


def test_files_and_pictures(made):
    pictures = {"ap.png", "difference.png", "errors.png", "precision_recall.png", "confusion.png"}
    assert {path.name for path in made.folder.iterdir()} == {"report.md", *CSV, *pictures}
    for name in pictures:
        with Image.open(made.folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 20


def test_groups_are_named_whole_and_the_baseline_first(made):
    assert [of.group.label for of in made.comparison.groups] == LABELS
    assert made.text.splitlines()[:3] == [
        f"baseline  1  {LABELS[0]}",
        f"group     2  {LABELS[1]}",
        f"group     3  {LABELS[2]}",
    ]
    assert f"written to   {made.folder}" in made.text


def test_summary(made):
    plain, better, one = table(made.folder / "summary.csv")
    assert [plain[k] for k in ("group", "baseline", "seeds", "steps")] == [LABELS[0], "1", "0 1 2", "400"]
    assert plain["AP_difference"] == plain["AP_ahead"] == one["AP_low"] == ""
    assert float(better["AP_difference_low"]) > 0
    assert float(better["AP_ahead"]) == 1
    assert float(better["AP_difference"]) == pytest.approx(float(better["AP"]) - float(plain["AP"]))
    assert int(plain["parameters"]) > 2e6
    assert int(plain["flops"]) > 1e8


def test_the_figures_are_those_of_the_training_and_the_interval_is_students(made):
    plain = made.comparison.groups[0]
    values = []
    for run in plain.group.runs:
        coco, _ = coco_metrics(list(run.detections.images.values()), CLASSES)
        values.append(coco["AP"])
    assert [run.coco["AP"] for run in plain.runs] == values
    mean, half = np.mean(values), 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    assert plain.coco["AP"] == pytest.approx((mean, mean - half, mean + half))
    rows = {row["class"]: row for row in table(made.folder / "classes.csv") if row["group"] == LABELS[0]}
    assert list(rows) == list(CLASSES)
    assert rows[CLASSES[3]]["AP"] == ""
    assert np.mean([float(rows[name]["AP"]) for name in CLASSES[:3]]) == pytest.approx(mean, abs=1e-6)


def test_each_run_and_each_kind_of_error_has_a_row(made):
    rows = table(made.folder / "runs.csv")
    assert [(row["group"], row["seed"]) for row in rows] == [
        *((label, str(n)) for label in LABELS[:2] for n in range(3)),
        (LABELS[2], "0"),
    ]
    errors = table(made.folder / "errors.csv")
    kinds = ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FalsePos", "FalseNeg"]
    assert [(row["group"], row["error"]) for row in errors] == [(g, kind) for g in LABELS for kind in kinds]
    mean = np.mean([float(row["Loc_gain"]) for row in rows[:3]])
    assert float(errors[1]["gain"]) == pytest.approx(mean)
    assert float(errors[1]["gain"]) > float(errors[9]["gain"]), "the jitter is larger"


def test_the_difference_is_paired(made, few, tmp_path):
    """Equal detections differ by exactly 0 in every resample, however much the figures themselves vary."""
    write_run(tmp_path / "runs" / "a", few)
    write_run(tmp_path / "runs" / "b", few, experiment="scenes")
    comparison, _ = report(tmp_path / "runs", tmp_path / "report")
    found = comparison.groups[1].difference
    assert found["AP"].estimate == (0, 0, 0)
    assert found["AP"].ahead == 0
    assert np.std(comparison.groups[0].runs[0].resampled[:, 0]) > 0.01

    plain, better = made.comparison.groups[:2]
    resampled = [np.mean([run.resampled[:, 0] for run in of.runs], axis=0) for of in (better, plain)]
    low, high = np.percentile(resampled[0] - resampled[1], [2.5, 97.5])
    assert better.difference["AP"].estimate[1:] == pytest.approx((low, high))
    alone = np.percentile(resampled[0], [2.5, 97.5]) - resampled[1].mean()
    assert high - low < alone[1] - alone[0], "pairing takes out what the images have in common"


def test_the_interval_over_seeds_is_of_the_differences_seed_by_seed(made, tmp_path):
    plain, better, one = made.comparison.groups
    found = ttest_rel(*([run.coco["AP"] for run in of.runs] for of in (better, plain))).confidence_interval()
    lead = better.difference["AP"].over_seeds
    assert lead == pytest.approx((better.difference["AP"].estimate.value, found.low, found.high))
    assert one.difference["AP"].over_seeds.value == one.runs[0].coco["AP"] - plain.runs[0].coco["AP"]
    assert np.isnan(one.difference["AP"].over_seeds.low), "one pair has no interval"
    rows = table(made.folder / "summary.csv")
    assert float(rows[1]["AP_difference_seeds_low"]) == pytest.approx(found.low)
    assert rows[0]["AP_difference_seeds_low"] == rows[2]["AP_difference_seeds_low"] == ""
    assert any(
        f"| ±{found.high - lead.value:.3f} |".replace("0.", ".") in line
        for line in (made.folder / "report.md").read_text().splitlines()
    )

    truth = random_truth(np.random.default_rng(0), 20, classes=3)
    for seed, experiment in ((0, "scenes_plain"), (1, "scenes_plain"), (1, "scenes"), (2, "scenes")):
        found = detect(np.random.default_rng([3, seed, len(experiment)]), truth, jitter=5 * seed + 3)
        write_run(tmp_path / "runs" / f"{experiment}{seed}", found, experiment=experiment, seed=seed)
    comparison, _ = report(tmp_path / "runs", tmp_path / "report")
    (_, second), (same, _) = (group.runs for group in comparison.groups)
    shared = comparison.groups[1].difference["AP"].over_seeds.value
    assert shared == same.coco["AP"] - second.coco["AP"], "of the seeds that both have"


def test_the_seed_of_the_bootstrap_decides(few, tmp_path):
    groups, _ = group_runs(find_runs([write_run(tmp_path / "run", few)])[0])
    drawn = [
        compare(groups, groups[0], resamples=20, seed=seed).groups[0].runs[0].resampled for seed in (0, 0, 1)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def read_markdown(folder: Path) -> str:
    """The report as it reads once Markdown has taken the backslashes out."""
    return re.sub(r"\\(.)", r"\1", (folder / "report.md").read_text())


def test_warnings_are_in_the_output_and_in_markdown(made):
    markdown = read_markdown(made.folder)
    subjects = ("unfinished", "numbers of steps", "different seeds", "only one seed", "same images and boxes")
    for warning, subject in zip(made.comparison.warnings, subjects, strict=True):
        assert subject in warning
    assert str(made.runs / "unfinished") in made.comparison.warnings[0]
    assert f"{LABELS[1]}: 400; {LABELS[2]}: 300" in made.comparison.warnings[1]
    assert f"{LABELS[1]}: 0, 1, 2; {LABELS[2]}: 0" in made.comparison.warnings[2]
    for warning in made.comparison.warnings:
        assert f"warning      {warning}\n" in made.text
        assert f"- **Warning:** {warning}\n" in markdown


def test_equal_groups_need_no_warning(few, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"a{seed}", few, seed=seed)
        write_run(tmp_path / "runs" / f"b{seed}", few, seed=seed, experiment="scenes")
    comparison, text = report(tmp_path / "runs", tmp_path / "report")
    assert comparison.warnings == []
    assert "warning" not in text


def test_a_student_that_cannot_be_built_costs_a_warning_and_no_report(few, tmp_path):
    write_run(tmp_path / "runs" / "a", few, changes={"student.model.backbone": "resnet9"})
    comparison, text = report(tmp_path / "runs", tmp_path / "report")
    warning = comparison.warnings[-1]
    assert warning.startswith("scenes_plain: parameters and FLOPs are unknown: ")
    assert "resnet9" in warning
    assert warning in text
    assert comparison.groups[0].cost is None
    assert [row["flops"] for row in table(tmp_path / "report" / "summary.csv")] == [""]


def test_markdown_holds_all_tables(made):
    lines = read_markdown(made.folder).splitlines()
    titles = [line for line in lines if line.startswith("## ")]
    assert len(titles) == len(set(titles)) == 13
    assert "![Errors](errors.png)" in lines
    unlike = "teacher=create_detector (not null), distiller=Distiller (not null)"
    assert f"- {LABELS[1]}: {unlike}" in lines
    header = lines.index(f"| class | objects | {' | '.join(LABELS)} |")
    assert lines[header + 2].startswith("| ant | ")
    for first, second in pairwise(lines):
        if first.startswith("|") and second.startswith("|"):
            assert first.count("|") == second.count("|"), "a table whose lines have as many cells each"


def test_figures_are_whole_in_a_terminal_of_80_columns(made):
    lines = made.text[made.text.index("COCO figures") : made.text.index("written to")].splitlines()
    assert max(map(len, lines)) <= 80
    plain, better = made.comparison.groups[:2]
    rows = [line.split() for line in lines]
    figures = [f"{plain.coco[name].value:.3f}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
    assert ["1", "scenes_plain", "3", *figures] in rows
    halves = [f"±{plain.gains[kind].high - plain.gains[kind].value:.3f}" for kind in KINDS]
    assert any(row[-6:] == halves for row in rows)
    interval = better.difference["AP"].estimate
    assert f"{interval.low:+.3f}..{interval.high:+.3f}".replace("0.", ".") in made.text
    cost = [f"{better.cost.parameters / 1e6:.2f}", "M", f"{better.cost.flops / 1e9:.2f}", "G"]
    assert ["2", "scenes", "0,", "1,", "2", "400", *cost, "128", "x", "128"] in rows
    assert any("AP by class" in line for line in lines)


def test_many_classes_are_left_to_the_files(few, tmp_path):
    write_run(tmp_path / "runs" / "a", few, classes=[f"class {n}" for n in range(13)])
    _, text = report(tmp_path / "runs", tmp_path / "report")
    assert "AP by class" not in text
    assert "| class 12 | 0 | - |" in (tmp_path / "report" / "report.md").read_text()


def test_one_group_alone_has_no_difference(few, tmp_path):
    write_run(tmp_path / "runs" / "a", few, changes={"name": "a|b $x$ [/]"})
    _, text = report(tmp_path / "runs", tmp_path / "report")
    assert "baseline  1  a|b $x$ [/]\n" in text
    assert "Difference" not in text
    assert not (tmp_path / "report" / "difference.png").exists()
    assert r"| a\|b \$x\$ \[/\] | 1 |" in (tmp_path / "report" / "report.md").read_text()


def test_what_is_there_is_not_overwritten(few, tmp_path):
    write_run(tmp_path / "runs" / "a", few)
    (tmp_path / "empty").mkdir()
    report(tmp_path / "runs", tmp_path / "empty")
    before = (tmp_path / "empty" / "report.md").read_text()
    for output in (tmp_path / "empty", tmp_path / "empty" / "report.md"):
        with pytest.raises(ConfigError, match=f"--output {output}: "):
            report(tmp_path / "runs", output)
    assert (tmp_path / "empty" / "report.md").read_text() == before


def test_the_folder_is_named_by_the_time(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report(write_run(tmp_path / "run", few), None)
    (folder,) = Path("reports").iterdir()
    assert len(folder.name) == len("2026-01-01_00-00-00")
    assert (folder / "report.md").is_file()
