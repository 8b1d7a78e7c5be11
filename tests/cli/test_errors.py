"""What a user sees whose command cannot be carried out: one line, and never a traceback."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf import DictConfig

from defeat.cli.error_messages import explain
from defeat.cli.launch import launch
from defeat.config import compose_config
from defeat.errors import ConfigError
from tests.helpers.console import Run
from tests.helpers.tiny import tiny, tiny_teacher


@pytest.fixture
def plain(scenes: Path, tmp_path: Path) -> list[str]:
    """Words of a training that works."""
    return ["+experiment=scenes_plain", *tiny(tmp_path / "run", scenes, "~logger")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["optim.optmizer.lr=1"],
            "unknown key optim.optmizer.lr: did you mean optim.optimizer.lr? "
            "(+optim.optmizer.lr=... would add a new one)",
        ),
        (["quite=1"], "unknown key quite: --help lists all keys (+quite=... would add a new one)"),
        (
            ["+experiment=scenes_plan"],
            "no experiment named scenes_plan: did you mean scenes_plain? there are ",
        ),
        (["data=cocoo"], "no data named cocoo: did you mean coco? there are bccd, coco, scenes, voc0712"),
        (["data=zzz"], "no data named zzz: there are bccd, coco, scenes, voc0712"),
        (
            ["experiment=scenes"],
            "experiment has no choice yet that could be replaced: write +experiment=scenes",
        ),
        (
            ["detector=frcnn_r50"],
            "unknown key detector: did you mean detector@student or detector@teacher?",
        ),
        ([], "data.root not set: add data.root=<the folder of the data set>"),
        (["data.root=nowhere"], "nowhere/annotations/instances_train2017.json: cannot be opened: "),
        (["logger=null"], "logger=null: null is no choice of logger; ~logger leaves it out"),
        (
            ["detector@teacher=null"],
            "detector@teacher=null: null is no choice of detector; ~detector@teacher leaves it out",
        ),
        (["optim=null"], "optim=null is no choice of optim: there are adamw, sgd_1x"),
        (["data=3"], "data=3 is no choice of data: there are bccd, coco, scenes, voc0712"),
        (["foo=[1"], "'foo=[1' cannot be read as KEY=VALUE: "),
        (["foo"], "'foo' cannot be read as KEY=VALUE: "),
        (["=3"], "'=3' cannot be read as KEY=VALUE: the key is missing"),
        (["a b=3"], "'a b=3' cannot be read as KEY=VALUE: "),
        (["~foo"], "Could not delete from config. 'foo' does not exist."),
        (["data.root=x", "name=${nope}"], "Interpolation key 'nope' not found"),
    ],
)
def test_words_that_cannot_be_composed(words: list[str], line: str, script: Run) -> None:
    assert script("defeat-train", *words).line.startswith(line)


def test_choices_are_listed_without_their_heading(script: Run) -> None:
    line = script("defeat-train", "+experiment=zzz").line
    names = line.partition("there are ")[2].split(", ")
    folder = Path(__file__).parents[2] / "conf" / "experiment"
    assert names == sorted(path.stem for path in folder.glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trainer.max_epochs=abc"], "trainer.max_epochs=abc: a whole number is expected, not text ("),
        (["trainer.max_steps=abc"], "trainer.max_steps=abc: a whole number is expected, not text ("),
        (["data.train.images=abc"], "data.train.images=abc: a whole number is expected, not text ("),
        (["optim.optimizer.lr=abc"], "optim.optimizer.lr=abc: a number is expected, not text ("),
        (["student=null"], "student=null: a group of keys is expected, not null ("),
        (["+student.model.foo=1"], "+student.model.foo=1: faster_rcnn() got an unexpected keyword argument"),
        (["+optim.optimizer.foo=1"], "+optim.optimizer.foo=1: AdamW.__init__() got an unexpected keyword"),
        (["student._target_=defeat.nope.nope"], "student: No module named 'defeat.nope'"),
        (["student.model._target_=defeat.detectors.nope"], "student.model: "),
        (
            ["trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=99"],
            "trainer.val_check_interval=99: `val_check_interval` (99) must be less than",
        ),
        (["ckpt_path=last"], "ckpt_path=last: no run below "),
        (["optimized_metric=val/ap"], "optimized_metric=val/ap is none of val/AP, "),
    ],
)
def test_values_that_cannot_be_trained_with(
    words: list[str], line: str, plain: list[str], script: Run
) -> None:
    ended = script("defeat-train", *plain, *words)
    assert ended.status == 1
    # Lightning writes about its devices before it fails.
    *before, last = ended.err.splitlines()
    assert last.startswith(f"error: {line}")
    assert not any(other.startswith("error: ") or "Error" in other for other in before)
    assert "Traceback" not in ended.err + ended.out


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "weights 'teacher.ckpt': no such file"),
        (b"no zip at all", "teacher.ckpt refused: it is damaged"),
        (b"", "teacher.ckpt"),
    ],
)
def test_teachers_that_cannot_be_read(
    content: bytes | None, line: str, scenes: Path, tmp_path: Path, script: Run
) -> None:
    if content is not None:
        Path("teacher.ckpt").write_bytes(content)
    words = tiny(tmp_path / "run", scenes, *tiny_teacher(Path("teacher.ckpt")))
    assert script("defeat-train", "+experiment=scenes", *words).line.startswith(line)


def test_half_a_teacher(teacher: Path, scenes: Path, tmp_path: Path, script: Run) -> None:
    whole = teacher.read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    words = tiny(tmp_path / "run", scenes, *tiny_teacher(Path("half.ckpt")))
    assert script("defeat-train", "+experiment=scenes", *words).line.startswith("half.ckpt ")


def test_a_distillation_without_its_teachers_weights_reads_no_data(tmp_path: Path, script: Run) -> None:
    words = [word for word in tiny(tmp_path / "run", tmp_path / "scenes") if "student" not in word]
    line = script("defeat-train", "+experiment=scenes", *words, "teacher.weights=null").line
    assert not (tmp_path / "scenes").exists()
    assert line.startswith("teacher.weights ")
    assert "add teacher.weights=<" in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give either checkpoint=<"),
        (["checkpoint=a.ckpt", "results=b.json"], "give either checkpoint=<"),
        (["checkpoint=gone.ckpt"], "weights 'gone.ckpt': no such file"),
        (["checkpoint=weights.pth"], "weights.pth does not say what data it is for: add data=<name>"),
        (["checkpoint=weights.pth", "split=train"], "split=train is neither val nor test"),
        (["results=gone.json"], "results= needs the ground truth: add data=<name>"),
        (["results=gone.json", "data=coco"], "data.root not set: "),
        (["chekpoint=a.ckpt"], "unknown key chekpoint: did you mean checkpoint?"),
    ],
)
def test_evaluations_that_lack_something(words: list[str], line: str, script: Run) -> None:
    torch.save({"weight": torch.zeros(1)}, "weights.pth")
    assert script("defeat-eval", *words).line.startswith(line)


def test_a_state_dict_of_no_known_detector(scenes: Path, script: Run) -> None:
    torch.save({"weight": torch.zeros(1)}, "weights.pth")
    data = ["data=scenes", *(word for word in tiny(Path(), scenes) if word.startswith("data."))]
    line = script("defeat-eval", "checkpoint=weights.pth", *data).line
    assert line == "weights.pth holds weights alone: say of which detector, detector@student=<name>"


def test_an_undecodable_image_in_a_worker(
    plain: list[str], scenes: Path, tmp_path: Path, script: Run
) -> None:
    assert script("defeat-train", *plain, "trainer.max_steps=0").status == 0  # generates the scenes
    copy = tmp_path / "damaged"
    shutil.copytree(scenes, copy)
    for image in (copy / "train").glob("*.png"):
        image.write_bytes(image.read_bytes()[:60])
    ended = script("defeat-train", *plain, f"data.root={copy}", "data.num_workers=1", "run_dir=second")
    assert ended.status == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {copy / 'annotations' / 'train.json'}: image id ")
    assert "cannot be decoded" in line
    assert "Traceback" not in ended.err + ended.out
    assert "Caught" not in ended.err + ended.out


def test_demo_with_a_teacher_that_is_not_there(script: Run) -> None:
    assert script("defeat-demo", "teacher=gone.ckpt").line.startswith("teacher=gone.ckpt: no such file")


@pytest.mark.parametrize("asked", ["hydra.verbose=true", "HYDRA_FULL_ERROR"])
def test_the_traceback_on_request(asked: str, script: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["optim.optmizer.lr=1"]
    if asked == "HYDRA_FULL_ERROR":
        monkeypatch.setenv(asked, "1")
    else:
        words.append(asked)
    with pytest.raises(ConfigCompositionException, match=r"optim\.optmizer\.lr"):
        script("defeat-train", *words)
    assert script("defeat-eval", "--help").status == 0
    with pytest.raises(ConfigError, match="give either checkpoint"):
        script("defeat-eval", *(word for word in [asked] if "=" in word))


def test_no_traceback_where_it_is_declined(script: Run) -> None:
    assert script("defeat-eval", "hydra.verbose=false").line.startswith("give either")


def _fail(error: Exception, monkeypatch: pytest.MonkeyPatch, words: Sequence[str] = ()) -> None:
    def task(config: DictConfig) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["defeat-eval", *words])
    try:
        launch(task, "eval")
    finally:
        GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("wrong"), TypeError("'<' not supported between 'str' and 'int'"), ValueError("seed")],
)
def test_a_defect_of_the_program_keeps_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error)) as caught:
        _fail(error, monkeypatch, ["split=val", "checkpoint=x"])
    assert caught.value is error


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def task(config: DictConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["defeat-eval"])
    with pytest.raises(SystemExit) as end:
        launch(task, "eval")
    assert end.value.code == 130
    assert capfd.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("before", [None, "0"])
def test_the_environment_is_as_it_was(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    seen: list[str | None] = []

    def task(config: DictConfig) -> None:
        seen.append(os.environ.get("HYDRA_FULL_ERROR"))
        raise ConfigError("wrong")

    monkeypatch.setattr("sys.argv", ["defeat-eval"])
    with pytest.raises((SystemExit, ConfigError)):
        launch(task, "eval")
    # DDP's processes inherit what the task sees
    assert seen == [before]
    assert os.environ.get("HYDRA_FULL_ERROR") == before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left", "m.csv"),
            "m.csv cannot be written: the disk is full: make room",
        ),
        (
            OSError(errno.EDQUOT, "Quota exceeded"),
            "a file of the run cannot be written: the disk quota is used",
        ),
        (InstantiationException("..."), "a folder is missing"),
        (
            InstantiationException("No module 'hydra_plugins.hydra_optuna_sweeper' ModuleNotFound"),
            "this kind of",
        ),
        (
            RuntimeError('Could not detect "srun", are you ...?'),
            'Could not detect "srun", are you ...? Without',
        ),
    ],
)
def test_what_libraries_say_of_the_machine(error: Exception, line: str) -> None:
    if line == "a folder is missing":
        error.__cause__ = ConfigError(line)
    assert str(explain(error, "train", [])).startswith(line)


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    assert explain(OSError(errno.EBADF, "Bad file descriptor"), "train", []) is None
    assert explain(RuntimeError("shapes differ"), "train", []) is None


def test_a_task_may_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []

    def task(config: DictConfig) -> None:
        found.append(compose_config("train", ["run_dir=here"]).run_dir)
        found.append(config.run_dir)

    monkeypatch.setattr("sys.argv", ["defeat-eval"])
    launch(task, "eval")
    assert found[0] == "here"
    assert Path(found[1]).parts[-3:-1] == ("runs", "eval")
