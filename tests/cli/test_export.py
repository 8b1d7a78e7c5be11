"""``defeat-export``: as a user goes, in this process."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from defeat.config import compose_config
from defeat.export import export as module
from defeat.export.check import Check
from defeat.export.speed import Speed, Timed
from defeat.run.train import train
from tests.helpers.console import Run
from tests.helpers.tiny import tiny

FOLDER = Path("out")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """Checkpoint of a tiny training whose backbone torchvision has, other than that of the other tests."""
    run_dir = tmp_path_factory.mktemp("trained")
    keys = ["student.model.backbone=resnet10", "~logger"]
    train(compose_config("train", ["+experiment=scenes_teacher", *tiny(run_dir, scenes, *keys)]))
    return run_dir / "checkpoints" / "last.ckpt"


def card() -> tuple[dict[str, Any], str]:
    """The card's head and its body."""
    _, head, body = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.fixture
def evaluation(teacher: Path, script: Run) -> Path:
    """The file that defeat-eval writes of the checkpoint."""
    assert script("defeat-eval", f"checkpoint={teacher}", "run_dir=evaluated").status == 0
    return Path("evaluated", "evaluation.json")


def test_weights_leave_with_all_that_describes_them(teacher: Path, evaluation: Path, script: Run):
    keys = ["card.license=mit", "card.datasets=[me/shapes]", "output=out", "images=2"]
    done = script("defeat-export", f"checkpoint={teacher}", "format=[safetensors,state_dict]", *keys)
    assert done.status == 0, done.err
    names = ["README.md", "export.md", "load_student.py", "student.pth", "student.safetensors"]
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(names)
    assert (FOLDER / "export.md").read_text().count("| passed |") == 2

    content = torch.load(teacher, weights_only=True)
    exported = torch.load(FOLDER / "student.pth", weights_only=True)
    state = {
        k.removeprefix("student."): v for k, v in content["state_dict"].items() if k.startswith("student.")
    }
    assert exported.keys() == state.keys()
    assert all(value.equal(state[name]) for name, value in exported.items())

    head, body = card()
    assert (head["pipeline_tag"], head["license"], head["datasets"]) == (
        "object-detection",
        "mit",
        ["me/shapes"],
    )
    # the training's own validation, which an evaluation repeats
    (result,) = head["model-index"][0]["results"]
    figures = {metric["type"]: metric["value"] for metric in result["metrics"]}
    expected = json.loads(evaluation.read_text())["coco"]
    assert figures == pytest.approx({k: v for k, v in expected.items() if v is not None}, abs=1e-5)
    for text in (*content["defeat"]["data"].values(), "AdamW", "| seed | 0 |", "| steps | 2 |", "not stated"):
        assert text in body
    for name in content["defeat"]["classes"]:
        assert f"| {name} |" in body

    again = script("defeat-export", f"checkpoint={teacher}", "output=out")
    assert again.line.startswith("output=out: there is README.md already")


def test_a_failing_comparison_deletes_nothing_and_ends_with_1(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, script: Run
):
    known = module.formats(nms=True)
    failing = known["state_dict"]._replace(
        verify=lambda *_: [Check("2 pictures", False, 3.5, math.inf, "why")]
    )

    def fail(*_: object) -> list[Check]:
        raise RuntimeError("no such operator\nin this runtime")

    broken = known["safetensors"]._replace(verify=fail)
    monkeypatch.setattr(module, "formats", lambda nms: {"state_dict": failing, "safetensors": broken})
    words = ["format=[state_dict,safetensors]", "output=out", "images=0"]
    done = script("defeat-export", f"checkpoint={teacher}", *words)
    assert done.status == 1
    assert "does not do what the student does" in done.err
    report = (FOLDER / "export.md").read_text()
    assert "| state_dict | 2 pictures | FAILED | why | 3.5e+00 | other set |" in report
    assert "| safetensors | running it | FAILED | no such operator | - | - |" in report
    assert (FOLDER / "student.pth").is_file()
    assert (FOLDER / "student.safetensors").is_file()
    assert "has failed" in (FOLDER / "README.md").read_text()


def test_a_student_beside_its_teacher(
    teacher: Path, evaluation: Path, monkeypatch: pytest.MonkeyPatch, script: Run
):
    content = torch.load(teacher, weights_only=True)
    config = content["defeat"]["config"]
    config["teacher"] = {**config["student"], "weights": str(teacher)}  # as if it had been distilled
    config["distiller"] = {"terms": {"a|b": {"_target_": "x.Term", "object_weight": 2.5}}}
    content["defeat"]["teacher"] = {"source": str(teacher), "sha256": "0" * 64}
    torch.save(content, "distilled.ckpt")
    contenders = []
    figures = json.loads(evaluation.read_text())
    figures["source"] = "copied elsewhere.ckpt"
    figures["coco"] = {**figures["coco"], "AP": 0.25, "APl": None}
    Path("evaluation.json").write_text(json.dumps(figures))

    def timed(given: dict[str, Any], images: list[torch.Tensor], compiled: str) -> Speed:
        contenders.extend(given)
        assert {tuple(image.shape) for image in images} == {(3, 40, 50)}
        seconds = {"student, PyTorch": 0.02, "teacher, PyTorch": 0.05}
        return Speed([Timed(n, 1, [seconds[n]] * 3) for n in given], ["no compiler"], 40, 50, 2, {})

    monkeypatch.setattr(module, "measure", timed)
    words = ["timing=true", "size=[40,50]", "output=out", "images=2", "verify=false", "format=state_dict"]
    words.append("evaluation=evaluation.json")
    done = script("defeat-export", "checkpoint=distilled.ckpt", *words)
    assert done.status == 0, done.err
    assert contenders == ["student, PyTorch", "teacher, PyTorch"]
    ap = json.loads(evaluation.read_text())["coco"]["AP"]  # of the teacher, which is the same file
    sentence = "The student is 2.5 times as fast as its teacher in PyTorch with one picture at a time"
    assert sentence in done.out
    assert f"and {0.25 - ap:.3f} AP ahead of it (0.250, {ap:.3f})" in done.out
    assert "not compared" in done.out
    script_of_another = script("defeat-export", "checkpoint=distilled.ckpt", f"evaluation={evaluation}")
    assert "is of another checkpoint" in script_of_another.line
    text = (FOLDER / "README.md").read_text()
    assert sentence in text
    assert "| a\\|b | Term, object_weight=2.5 |" in text
    assert "no compiler" in (FOLDER / "export.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["checkpoint=other.ckpt"], "no checkpoint of this project"),
        (["checkpoint=gone.ckpt"], "gone.ckpt"),
        (["checkpoint=CKPT", "evaluation=none.json"], "evaluation=none.json"),
        (["checkpoint=CKPT", "evaluation=other.json"], "not an evaluation.json"),
        (["checkpoint=CKPT", "data=coco", "data.root=nowhere"], "nowhere"),
        (["checkpoint=CKPT", "teacher=true"], "teacher's own checkpoint"),
        (["checkpoint=CKPT", "format=tflite"], "format='tflite' is none of"),
        (["checkpoint=CKPT", "format=[]"], "format=[] is none of"),
        (["checkpoint=CKPT", "size=[16,64]"], "at least 32"),
        (["checkpoint=CKPT", "size=640"], "[height, width]"),
    ],
)
def test_mistakes_are_told_in_a_line_and_leave_nothing(
    words: list[str], said: str, teacher: Path, script: Run, tmp_path: Path
):
    torch.save({"state_dict": {"w": torch.zeros(1)}}, "other.ckpt")
    Path("other.json").write_text(json.dumps({"coco": {}}))
    given = [word.replace("CKPT", str(teacher)) for word in words]
    assert said in script("defeat-export", *given, "output=out").line
    assert not FOLDER.exists()


def test_without_the_extra_its_name_is_told(teacher: Path, monkeypatch: pytest.MonkeyPatch, script: Run):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = script("defeat-export", f"checkpoint={teacher}", "format=onnx", "output=out").line
    assert "onnxscript missing" in line
    assert "pip install 'defeat[export]'" in line
    assert not FOLDER.exists()
