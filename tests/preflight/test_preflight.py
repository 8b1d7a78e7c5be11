"""The checks as a run meets them: all together, refused or tolerated, and without a trace in the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from defeat.cli.error_messages import explain
from defeat.errors import ConfigError
from defeat.preflight import CHECKS, Finding, Preflight, PreflightError, Problem
from defeat.preflight import preflight as checks
from defeat.run.train import train
from defeat.training.run import Run
from tests.helpers.built_runs import words
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher

FEW = ["preflight.images=24", "preflight.batches=1", "preflight.steps=1"]
PLAIN = ("weights", "data", "losses", "gradients", "optimizer", "cost")


def run(experiment: str, overrides: list[str]) -> Any:
    return train(tiny_config(experiment, overrides))


def report(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "preflight.json").read_text())
    return found


def test_a_healthy_run_passes_all_checks_and_trains_nothing(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run("scenes", words(tmp_path, pictures, "preflight=only", *FEW))
    assert outcome.steps == 0
    assert not (tmp_path / "checkpoints").exists()
    found = report(tmp_path)
    assert tuple(found["checks"]) == CHECKS
    assert {check: one["problems"] for check, one in found["checks"].items()} == {name: [] for name in CHECKS}
    assert {one["result"] for one in found["checks"].values()} == {"ok"}
    shown = capsys.readouterr().out
    assert "Pre-flight: 13 checks, all ok" in shown
    assert "AP50" in shown
    markdown = (tmp_path / "preflight.md").read_text()
    assert all(f"| {check} | ok | " in markdown for check in CHECKS)


def test_a_plain_run_can_be_checked_and_is_not_unless_asked(tmp_path: Path, scenes: Path) -> None:
    run("scenes_plain", tiny(tmp_path / "only", scenes, "~logger", "preflight=only", *FEW))
    assert tuple(report(tmp_path / "only")["checks"]) == PLAIN
    run("scenes_plain", tiny(tmp_path / "default", scenes, "~logger", "preflight=default", steps=1))
    assert not (tmp_path / "default" / "preflight.json").exists()
    assert (tmp_path / "default" / "checkpoints" / "last.ckpt").exists()


def test_the_training_is_the_same_with_the_checks_and_without(
    tmp_path: Path, scenes: Path, teacher: Path
) -> None:
    # BatchNorm in the student, random proposals of the teacher, augmentation: all that could leave a trace.
    more = [*tiny_teacher(teacher), "~logger", "distiller.terms.head.proposals=teacher"]
    for choice in ("off", "default"):
        untaught = [] if choice == "off" else ["preflight.least_ap50=0", *FEW]
        run("scenes", tiny(tmp_path / choice, scenes, *more, f"preflight={choice}", *untaught))
    assert (tmp_path / "default" / "preflight.md").is_file()
    assert not (tmp_path / "off" / "preflight.md").exists()
    ends = [
        torch.load(tmp_path / choice / "checkpoints" / "last.ckpt", weights_only=True)
        for choice in ("off", "default")
    ]
    first, second = (end["state_dict"] for end in ends)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    moments = [end["optimizer_states"][0]["state"] for end in ends]
    assert all(
        torch.equal(value, moments[1][i][name])
        for i, state in moments[0].items()
        for name, value in state.items()
    )


def test_a_resumed_run_is_not_checked_again(tmp_path: Path, scenes: Path, teacher: Path) -> None:
    more = [*tiny_teacher(teacher), "~logger"]
    run("scenes", tiny(tmp_path / "a", scenes, *more, steps=1))
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    on = [*more, f"ckpt_path={last}", "preflight=default", "preflight.least_ap50=1"]
    assert run("scenes", tiny(tmp_path / "b", scenes, *on, steps=2)).steps == 2
    assert not (tmp_path / "b" / "preflight.json").exists()


WRONG = ["student.model.min_size=64", "student.model.max_size=64", "preflight.expected_ap=0.48"]


def test_failed_checks_refuse_the_run_in_one_line_and_say_how_to_go_on(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PreflightError) as error:
        run("scenes", words(tmp_path / "refused", pictures, *WRONG, *FEW, "preflight=default"))
    line = explain(error.value, "train", [])
    assert line is not None
    assert "\n" not in line
    assert line.startswith("pre-flight: resize: the student's images, which the teacher is shown, have")
    assert "; teacher: AP 0." in line
    assert line.endswith("(to train all the same: preflight.tolerate=[resize,teacher])")
    assert not (tmp_path / "refused" / "checkpoints").exists()
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 failed" in shown
    assert "remedy: set student.model.min_size=128 student.model.max_size=128" in shown
    assert report(tmp_path / "refused")["checks"]["resize"]["result"] == "failed"


def test_tolerated_checks_only_warn(tmp_path: Path, scenes: Path, teacher: Path) -> None:
    wrong = "student.model.min_size=32"  # another size than the teacher's
    forgiven = [wrong, *FEW, "preflight=only", "preflight.tolerate=[resize]"]
    run("scenes", tiny(tmp_path, scenes, *tiny_teacher(teacher), "~logger", *forgiven))
    found = report(tmp_path)["checks"]
    assert [name for name, one in found.items() if one["result"] == "tolerated"] == ["resize"]
    assert "**resize**: the student's images" in (tmp_path / "preflight.md").read_text()


@pytest.mark.parametrize("where", ["take_steps", "check_losses"])
def test_a_step_that_does_not_fit_is_found(
    where: str, healthy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(checks, where, full)
    monkeypatch.setattr(checks, "check_teacher", lambda *_, **__: [])
    with pytest.raises(PreflightError, match=r"cost: a training step on 4 images .* lower data.batch_size"):
        build(tmp_path)(healthy)


def build(folder: Path, **changed: Any) -> Preflight:
    settings: dict[str, Any] = {
        "only": True,
        "seconds": 60,
        "images": 4,
        "batches": 1,
        "steps": 1,
        "least_ap50": 0.05,
        "expected_ap": None,
        "tolerance": 0.1,
        "level_factor": 100.0,
        "tolerate": [],
    }
    return Preflight(str(folder), **settings | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tolerate": ["size"]}, "preflight.tolerate: there is no check 'size', only weights, classes"),
        (
            {"tolerate": "resize"},
            r"preflight.tolerate=resize is no list: write preflight.tolerate=\[resize\]",
        ),
        ({"steps": 0}, "preflight.steps must be at least 1, got 0"),
        ({"seconds": float("nan")}, "preflight.seconds must be at least 1, got nan"),
        (
            {"expected_ap": 47.8},
            r"preflight.expected_ap must be in \[0, 1\], as all figures here are, got 47.8",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, **changed)


def test_the_worst_problem_is_the_result_of_a_check() -> None:
    severe, slight = Problem("a", "b"), Problem("c", "d", severe=False)
    assert Finding("resize", "").result == "ok"
    assert Finding("resize", "", [slight]).result == "warning"
    assert Finding("resize", "", [slight, severe]).result == "failed"
    assert Finding("resize", "", [slight, severe], tolerated=True).result == "tolerated"
    assert Finding("resize", "", [slight], tolerated=True).result == "warning"
