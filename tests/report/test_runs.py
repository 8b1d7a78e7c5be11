"""Which runs are found, which belong together, and what groups are called."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from defeat.errors import ConfigError, DataError
from defeat.evaluation.detections import DETECTIONS_FILE
from defeat.report.groups import choose_baseline, group_runs, setting_differences
from defeat.report.runs import find_runs, with_same_truth
from tests.helpers.report_cases import detect, image_result, random_truth, write_run

IMAGES = [image_result([(0, 0, 10, 10, 0.5, 1)], [(0, 0, 10, 10, 1)])]


def found(*paths: Path) -> list[Path]:
    return [run.folder for run in find_runs(paths)[0]]


def labels(*paths: Path) -> dict[str, list[int]]:
    groups, _ = group_runs(find_runs(paths)[0])
    return {group.label: group.seeds for group in groups}


def test_runs_are_found_at_any_depth_once_and_jobs_in_their_order(tmp_path):
    runs = [write_run(tmp_path / "runs" / "a" / "sweep_1" / str(job), IMAGES, seed=job) for job in (0, 2, 10)]
    write_run(tmp_path / "runs" / "a" / "sweep_1" / "0" / ".hydra", IMAGES)
    alone = write_run(tmp_path / "runs" / "b" / "2026-01-01", IMAGES)
    assert found(tmp_path / "runs") == [*runs, alone]
    assert found(alone, tmp_path / "runs" / "b", tmp_path / "runs" / "a" / ".." / "b") == [alone]
    assert found(alone, tmp_path / "runs" / "a" / "sweep_1") == [alone, *runs]


def test_a_run_is_read(tmp_path):
    write_run(tmp_path / "run", IMAGES, seed=3, step=77)
    (run,), warnings = find_runs([tmp_path])
    assert (run.name, run.seed, run.detections.step, warnings) == ("scenes_plain", 3, 77, [])
    assert run.training_data == "0"
    (tmp_path / "run" / "data.json").unlink()
    assert find_runs([tmp_path])[0][0].training_data is None


def test_runs_without_detections_are_named_and_left_out_of_a_folder(tmp_path):
    done, unfinished = write_run(tmp_path / "0", IMAGES), write_run(tmp_path / "1", [])
    (run,), (warning,) = find_runs([tmp_path])
    assert run.folder == done
    assert str(unfinished) in warning
    assert "unfinished" in warning
    for path in (unfinished, tmp_path):
        (done / DETECTIONS_FILE).unlink(missing_ok=True)
        with pytest.raises(DataError, match=rf"{path}: .*detections.safetensors.*train it again"):
            find_runs([path])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path / 'none'}: no such folder"):
        find_runs([tmp_path / "none"])
    with pytest.raises(DataError, match="neither a run folder nor one with runs below it"):
        find_runs([tmp_path])
    run = write_run(tmp_path / "run", IMAGES)
    config = (run / "config.yaml").read_text()
    for text, problem in (
        ("name: x", "lacks seed, run_dir, student"),
        ("a: [", "cannot be read"),
        ("- 1", "damaged"),
        (f"{config}\nextra: ${{oc.env:HOME}}", "oc.env:HOME"),
        (config.replace("\nseed: 0", "\nseed: null"), "seed is None"),
    ):
        (run / "config.yaml").write_text(text)
        with pytest.raises(DataError, match=rf"config.yaml: .*{problem}"):
            find_runs([run])
    other = write_run(tmp_path / "other", IMAGES)
    (other / DETECTIONS_FILE).write_bytes(b"nonsense")
    with pytest.raises(DataError, match=str(other / DETECTIONS_FILE)):
        find_runs([other])


@pytest.mark.parametrize(
    ("images", "classes", "problem"),
    [
        (IMAGES, ("ant", "bee", "cow", "elk"), r"classes \(ant, bee, cow, dog; ant, bee, cow, elk\)"),
        (IMAGES * 2, None, r"images \(1; 2\)"),
        ([image_result([], [(0, 0, 10, 11, 1)], area=[100.0])], None, r"boxes \(first at image 0\)"),
        ([image_result([], [(0, 0, 10, 10, 2)])], None, "boxes"),
        ([image_result([], [(0, 0, 10, 10, 1)], [0])], None, "boxes"),
        ([image_result([], [(0, 0, 10, 10, 1)], area=[99.0])], None, "boxes"),
        ([image_result([], [])], None, "boxes"),
    ],
)
def test_runs_of_other_ground_truth_are_left_out_with_a_warning(tmp_path, images, classes, problem):
    more = {"classes": classes} if classes else {}
    a, b = write_run(tmp_path / "a", IMAGES), write_run(tmp_path / "b", images, **more)
    kept, (warning,) = with_same_truth(find_runs([tmp_path])[0])
    assert [run.folder for run in kept] == [a]
    assert re.search(f"{b} was validated on other {problem}.* than {a}", warning)
    c = write_run(tmp_path / "c", images, **more)
    kept, (warning,) = with_same_truth(find_runs([tmp_path])[0])
    assert [run.folder for run in kept] == [b, c], "those that are most"
    assert f"{a} was" in warning


def test_other_detections_of_the_same_ground_truth_are_not_refused(tmp_path):
    write_run(tmp_path / "a", IMAGES)
    write_run(tmp_path / "b", [image_result([], [(0, 0, 10, 10, 1)])])
    assert len(with_same_truth(find_runs([tmp_path])[0])[0]) == 2


def test_seeds_and_places_do_not_make_another_group(tmp_path):
    places = {
        "data.root": "/elsewhere",
        "output_root": "/elsewhere",
        "ckpt_path": "last",
        "download": True,
        "student.download": True,
        "data.num_workers": 2,
        "callbacks.progress": None,
        "logger": None,
        "measure": None,
    }
    write_run(tmp_path / "x" / "a", IMAGES, seed=1)
    write_run(tmp_path / "b", IMAGES, seed=0, changes=places)
    assert labels(tmp_path) == {"scenes_plain": [0, 1]}


def test_paths_below_the_run_folder_do_not_but_others_that_begin_alike_do(tmp_path):
    for seed, end in enumerate(("/kept", "/kept", "2/kept")):
        folder = tmp_path / str(seed)
        write_run(folder, IMAGES, seed=seed, changes={"student.weights": f"{folder}{end}"})
    assert labels(tmp_path) == {
        "scenes_plain [student.weights=${run_dir}/kept]": [0, 1],
        f"scenes_plain [student.weights={tmp_path / '22'}/kept]": [2],
    }


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optim.optimizer.lr", [0.1, 0.2]),
        ("trainer.max_steps", [400, 800]),
        ("data.train.seed", [0, 1]),
        ("data.batch_size", [8, 4]),
        ("student.weights", ["a.pth", "b.pth"]),
        ("callbacks.checkpoint.mode", ["max", "min"]),
    ],
)
def test_settings_make_another_group_and_its_name(tmp_path, key, values):
    for n, value in enumerate(values):
        write_run(tmp_path / str(n), IMAGES, changes={key: value}, seed=n)
    assert labels(tmp_path) == {f"scenes_plain [{key}={value}]": [n] for n, value in enumerate(values)}


def test_names_hold_as_few_keys_as_tell_groups_apart(tmp_path):
    a, b = "distiller.terms.neck.object_weight", "distiller.terms.neck.background_weight"
    sweep = [(1, 4, 400), (1, 16, 400), (8, 4, 800), (8, 16, 800)]
    for n, (one, two, steps) in enumerate(sweep):
        changes = {a: one, b: two, "trainer.max_steps": steps}
        write_run(tmp_path / str(n), IMAGES, experiment="scenes", changes=changes)
    write_run(tmp_path / "plain", IMAGES)
    assert list(labels(tmp_path)) == [
        *(f"scenes [{a}={one}, {b}={two}]" for one, two, _ in sweep),
        "scenes_plain",
    ]


def test_a_part_that_others_have_not_is_one_key(tmp_path):
    write_run(tmp_path / "0", IMAGES, changes={"name": "x"})
    write_run(tmp_path / "1", IMAGES, experiment="scenes", changes={"name": "x"})
    assert list(labels(tmp_path)) == ["x [teacher=null]", "x [teacher=create_detector]"]
    configs = [run.config for run in find_runs([tmp_path])[0]]
    keys = {difference.key: difference.values for difference in setting_differences(configs)}
    assert keys == {"teacher": ["null", "create_detector"], "distiller": ["null", "Distiller"]}


def test_keys_without_a_target_are_written_out(tmp_path):
    for name, shares in (("0", None), ("1", {"neck_object": 0.1, "head_object": 2.0})):
        changes = {"distiller.shares": shares}
        write_run(tmp_path / name, IMAGES, experiment="scenes", changes=changes)
    key = "distiller.shares"
    assert list(labels(tmp_path)) == [
        f"scenes [{key}=null]",
        f"scenes [{key}={{neck_object: 0.1, head_object: 2.0}}]",
    ]


def test_of_repeats_of_a_seed_the_one_trained_furthest_counts_then_the_newest(tmp_path):
    old, new, short = (
        write_run(tmp_path / name, IMAGES, seed=5, step=step)
        for name, step in (("old", 400), ("new", 400), ("short", 200))
    )
    write_run(tmp_path / "z", IMAGES, seed=4)
    for folder, time in ((old, 100), (new, 200), (short, 300)):
        os.utime(folder / DETECTIONS_FILE, (time, time))
    (group,), (warning,) = group_runs(find_runs([tmp_path])[0])
    assert [run.folder for run in group.runs] == [tmp_path / "z", new]
    assert warning.startswith("scenes_plain: left out")
    assert str(old) in warning
    assert str(short) in warning
    assert str(new) not in warning


def test_the_baseline(tmp_path):
    write_run(tmp_path / "0", IMAGES, experiment="scenes", changes={"optim.optimizer.lr": 0.1})
    write_run(tmp_path / "1", IMAGES, experiment="scenes", changes={"optim.optimizer.lr": 0.2})
    write_run(tmp_path / "2", IMAGES)
    groups, _ = group_runs(find_runs([tmp_path])[0])
    assert choose_baseline(groups).label == "scenes_plain"
    assert choose_baseline(groups[:2]) is groups[0]
    assert choose_baseline(groups, groups[1].label) is groups[1]
    with pytest.raises(
        ConfigError, match=r"--baseline scenes: several .*'scenes \[optim.optimizer.lr=0.1\]'"
    ):
        choose_baseline(groups, "scenes")
    with pytest.raises(ConfigError, match=r"--baseline none: no such group; there are .*'scenes_plain'"):
        choose_baseline(groups, "none")
    assert choose_baseline(groups[1:], "scenes") is groups[1]


def test_two_plain_groups_leave_the_choice_to_the_order(tmp_path):
    for n, lr in enumerate((0.1, 0.2)):
        write_run(tmp_path / str(n), IMAGES, changes={"optim.optimizer.lr": lr})
    groups, _ = group_runs(find_runs([tmp_path / "1", tmp_path / "0"])[0])
    assert choose_baseline(groups).label == "scenes_plain [optim.optimizer.lr=0.2]"


def test_random_detections_survive_the_way(tmp_path):
    rng = np.random.default_rng(0)
    images = detect(rng, random_truth(rng, 5))
    write_run(tmp_path / "run", images)
    (run,), _ = find_runs([tmp_path])
    assert all(
        a.equal(b)
        for image, read in zip(images, run.detections.images.values(), strict=True)
        for a, b in zip(image, read, strict=True)
    )
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").run_dir == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "recorded"), [("object_weight", False), ("object_weight", True), ("loss_scale", True)]
)
def test_runs_that_balanced_their_weights_are_one_experiment_over_seeds(tmp_path, key, recorded):
    key = f"distiller.terms.neck.{key}"
    balanced = {"distiller.balance": "balanced", **({"distiller.balanced": [key]} if recorded else {})}
    for seed, weight in enumerate((3.005, 2.902)):
        found_weight = {**balanced, key: weight}
        write_run(tmp_path / f"b{seed}", IMAGES, experiment="scenes", seed=seed, changes=found_weight)
        write_run(tmp_path / f"c{seed}", IMAGES, experiment="scenes", seed=seed, changes={key: weight})
    grouped = labels(tmp_path)
    assert sorted(grouped.values()) == [[0], [0, 1], [1]]
    (together,) = [label for label, seeds in grouped.items() if seeds == [0, 1]]
    assert together == f"scenes [{key}=balanced]"
    part_off = {**balanced, key: 0.0}
    write_run(tmp_path / "off", IMAGES, experiment="scenes", seed=5, changes=part_off)
    assert [5] in labels(tmp_path).values()
