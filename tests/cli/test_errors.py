"""What a user sees whose command cannot be carried out: one line, and never a traceback."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf import DictConfig, OmegaConf

from defeat.cli.error_messages import explain
from defeat.cli.launch import launch
from defeat.cli.overrides import check_types
from defeat.config import check_no_secrets, compose_config
from defeat.errors import ConfigError
from defeat.run.build import build_run
from tests.helpers.console import Run
from tests.helpers.tiny import tiny, tiny_teacher


@pytest.fixture
def plain(scenes: Path, tmp_path: Path) -> list[str]:
    """Words of a training that works."""
    return ["+experiment=scenes_plain", *tiny(tmp_path / "run", scenes, "~logger")]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optim.optmizer.lr=1"], ["unknown key optim.optmizer.lr", "optim.optimizer.lr?"]),
        (["quite=1"], ["unknown key quite", "--help"]),
        (["+experiment=scenes_plan"], ["no experiment named scenes_plan", "mean scenes_plain?"]),
        (["data=zzz"], ["no data named zzz", "scenes, voc0712"]),
        (["experiment=scenes"], ["write +experiment=scenes"]),
        (["detector=frcnn_r50"], ["detector@student or detector@teacher?"]),
        ([], ["data.root not set", "add data.root=<"]),
        (["data.root=nowhere"], ["nowhere/annotations/instances_train2017.json: cannot be opened"]),
        (["logger=null"], ["logger=null", "~logger"]),
        (["detector@teacher=null"], ["detector@teacher=null", "~detector@teacher"]),
        (["optim=null"], ["optim=null is no choice", "adamw"]),
        (["data=3"], ["data=3 is no choice", "voc0712"]),
        (["distiller=[neck,null]"], ["distiller=[neck,null] is no choice", "defeat"]),
        (["foo=[1"], ["'foo=[1'", "KEY=VALUE"]),
        (["foo"], ["'foo'", "KEY=VALUE"]),
        (["=3"], ["'=3'", "key is missing"]),
        (["a b=3"], ["'a b=3'", "KEY=VALUE"]),
        (["~foo"], ["'foo' does not exist"]),
        (["data.root=x", "name=${nope}"], ["'nope' not found"]),
    ],
)
def test_words_that_cannot_be_composed(words: list[str], parts: list[str], script: Run) -> None:
    line = script("defeat-train", *words).line
    assert [part for part in parts if part not in line] == [], line


@pytest.mark.parametrize(
    "word",
    [
        "+logger.wandb.settings.api_key=hush",
        "+logger.wandb.settings={base_url: 'https://a', api_key: hush}",
        "logger.mlflow.tracking_uri=http://me:hush@host/mlflow",
        "+logger.comet.api_key=hush,hush2",
    ],
)
def test_a_secret_leaves_no_trace(word: str, plain: list[str], script: Run, tmp_path: Path) -> None:
    sweep = ["-m"] if "," in word.partition("{")[0] else []
    ended = script("defeat-train", *plain[:-1], "logger=[wandb,mlflow]", word, *sweep)
    assert word.lstrip("+").partition("=")[0].split("{")[0] in ended.line
    assert "hush" not in ended.line
    assert not any("hush" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_secrets_of_a_file_are_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"^logger\.comet\.api_key: ") as refused:
        check_no_secrets({"comet": {"_target_": "x", "api_key": "hush"}})
    assert "hush" not in str(refused.value)
    check_no_secrets({"comet": {"api_key": None, "tracking_uri": "http://host:5000/a@b", "project": "token"}})


DISTILLED = ["+experiment=frcnn_r152_r50", "run_dir=x", "data.root=x"]


@cache
def distilled() -> DictConfig:
    """Not to be changed."""
    return compose_config("train", DISTILLED)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("trainer.max_steps=abc", "a whole number"),
        ("data.batch_size=2.5", "a whole number"),
        ("seed=null", "a whole number"),
        ("optim.optimizer.lr=abc", "a number"),
        ("distiller.terms.neck.object_weight=true", "a number"),
        ("tf32=1", "true or false"),
        ("trainer.sync_batchnorm=yes_please", "true or false"),
        ("name=[2024]", "text"),
        ("optim.lr_schedule.milestones=8", "a list"),
        ("student=null", "a group of keys"),
        ("optim.optimizer=3", "a group of keys"),
    ],
)
def test_values_of_another_type_than_their_defaults(word: str, expected: str) -> None:
    config = distilled().copy()
    key, _, value = word.partition("=")
    OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
    with pytest.raises(ConfigError, match=rf"^{key} must be {expected}, got .*{value}"):
        check_types(config, distilled())


def test_a_value_of_another_type_ends_the_command(script: Run) -> None:
    line = script("defeat-train", *DISTILLED, "seed=null").line
    assert line.startswith("seed must be a whole number, got null")


RIGHT = [
    "trainer.devices=auto",
    "trainer.deterministic=warn",
    "trainer.precision=32",
    "trainer.max_epochs=null",
    "trainer.val_check_interval=0.5",
    "optim.optimizer.lr=1",
    "student.model.min_size=[480,512]",
    "data.val_batch_size=null",
    "callbacks.progress=null",
    "distiller.terms.backbone=null",
    "student.weights=null",
    "callbacks.measure=null",
    "name=${output_root}",
]


@pytest.mark.parametrize(
    ("choices", "values"),
    [
        ([], RIGHT),
        ([], ["trainer.devices=[0,1]", "~callbacks.progress"]),
        (["trainer=ddp"], ["trainer.devices=2"]),
        (["data=folder"], ["data.num_workers=0"]),
    ],
)
def test_types_that_are_right_beside_the_default(choices: list[str], values: list[str]) -> None:
    common = ["+experiment=scenes", "run_dir=x", *choices]
    check_types(compose_config("train", [*common, *values]), compose_config("train", common))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["+student.model.norn=1"], ["student", "'norn'"]),
        (["+optim.optimizer.momentun=1"], ["optim.optimizer: ", "'momentun'"]),
        (["+data.train.imagez=1"], ["data.train: ", "'imagez'"]),
        (["student._target_=defeat.nope.nope"], ["student: ", "defeat.nope"]),
        (["student.model._target_=defeat.detectors.nope"], ["student.model: "]),
        (["ckpt_path=last"], ["ckpt_path=last: ", "no last.ckpt"]),
    ],
)
def test_values_that_cannot_be_trained_with(words: list[str], parts: list[str], plain: list[str]) -> None:
    line = refusal([*plain, *words])
    assert [part for part in parts if part not in line] == [], line


def refusal(words: list[str]) -> str:
    """The line of a training that ends before it begins."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any that the line below is made of
        build_run(compose_config("train", words))
    line = explain(caught.value, "train", words)
    assert line is not None
    return line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=99"],
            ["val_check_interval", "99"],
        ),
        (["optim.optimizer.lr=-1"], ["optim.optimizer: ", "-1"]),
        (["optimized_metric=val/ap"], ["optimized_metric=val/ap ", "val/AP, "]),
    ],
)
def test_what_a_training_finds_wrong_ends_the_command_in_a_line(
    words: list[str], parts: list[str], plain: list[str], script: Run
) -> None:
    ended = script("defeat-train", *plain, *words)
    assert ended.status == 1
    # Lightning writes about its devices before it fails.
    *before, last = ended.err.splitlines()
    assert last.startswith("error: ")
    assert [part for part in parts if part not in last] == [], last
    assert not any(other.startswith("error: ") or "Error" in other for other in before)
    assert "Traceback" not in ended.err + ended.out


@pytest.mark.parametrize("content", [None, b"no zip at all", b"", "half"])
def test_teachers_that_cannot_be_read(
    content: bytes | str | None, teacher: Path, scenes: Path, tmp_path: Path
) -> None:
    if content == "half":
        content = teacher.read_bytes()[: teacher.stat().st_size // 2]
    if isinstance(content, bytes):
        Path("teacher.ckpt").write_bytes(content)
    words = tiny(tmp_path / "run", scenes, *tiny_teacher(Path("teacher.ckpt")))
    assert "teacher.ckpt" in refusal(["+experiment=scenes", *words])


def test_a_distillation_without_its_teachers_weights_reads_no_data(tmp_path: Path, script: Run) -> None:
    words = [word for word in tiny(tmp_path / "run", tmp_path / "scenes") if "student" not in word]
    line = script("defeat-train", "+experiment=scenes", *words, "teacher.weights=null").line
    assert not (tmp_path / "scenes").exists()
    assert "add teacher.weights=<" in line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["checkpoint=<", "results=<"]),
        (["checkpoint=a.ckpt", "results=b.json"], ["checkpoint=<", "results=<"]),
        (["checkpoint=gone.ckpt"], ["'gone.ckpt'", "no such file"]),
        (["checkpoint=weights.pth"], ["weights.pth", "add data=<"]),
        (["checkpoint=weights.pth", "split=train"], ["split=train", "val", "test"]),
        (["results=gone.json"], ["add data=<"]),
        (["results=gone.json", "data=coco"], ["data.root not set"]),
        (["chekpoint=a.ckpt"], ["chekpoint", "did you mean checkpoint?"]),
    ],
)
def test_evaluations_that_lack_something(words: list[str], parts: list[str], script: Run) -> None:
    torch.save({"weight": torch.zeros(1)}, "weights.pth")
    line = script("defeat-eval", *words).line
    assert [part for part in parts if part not in line] == [], line


def test_a_state_dict_of_no_known_detector(scenes: Path, script: Run) -> None:
    torch.save({"weight": torch.zeros(1)}, "weights.pth")
    data = ["data=scenes", *(word for word in tiny(Path(), scenes) if word.startswith("data."))]
    assert "detector@student=<" in script("defeat-eval", "checkpoint=weights.pth", *data).line


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
    assert "Traceback" not in ended.err + ended.out
    assert "Caught" not in ended.err + ended.out


def test_demo_with_a_teacher_that_is_not_there(script: Run) -> None:
    assert "teacher=gone.ckpt: no such file" in script("defeat-demo", "teacher=gone.ckpt").line


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
    with pytest.raises(ConfigError):
        script("defeat-eval", *(word for word in [asked] if "=" in word))


def test_no_traceback_where_it_is_declined(script: Run) -> None:
    assert script("defeat-eval", "hydra.verbose=false").line


@pytest.mark.parametrize(
    "error",
    [RuntimeError("wrong"), TypeError("'<' not supported between 'str' and 'int'"), ValueError("seed")],
)
def test_a_defect_of_the_program_keeps_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(config: DictConfig) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["defeat-eval", "split=val", "checkpoint=x"])
    with pytest.raises(type(error)) as caught:
        launch(task, "eval")
    GlobalHydra.instance().clear()
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
    ("error", "part"),
    [
        (OSError(errno.ENOSPC, "No space left", "m.csv"), "m.csv cannot be written"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "cannot be written"),
        (InstantiationException("..."), "a folder is missing"),
        (InstantiationException("'hydra_plugins.hydra_optuna_sweeper' ModuleNotFound"), "'defeat[sweep]'"),
        (RuntimeError('Could not detect "srun", are you ...?'), "hydra/launcher=local"),
    ],
)
def test_what_libraries_say_of_the_machine(error: Exception, part: str) -> None:
    if part == "a folder is missing":
        error.__cause__ = ConfigError(part)
    assert part in str(explain(error, "train", []))


@pytest.mark.parametrize("absent", [["optuna"], ["hydra_plugins.hydra_optuna_sweeper.optuna_sweeper"]])
def test_a_search_without_the_extra_says_what_to_install(
    absent: list[str], script: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "defeat.optuna_study", raising=False)
    for name in ["optuna", *absent]:
        monkeypatch.setitem(sys.modules, name, None)
    words = ["-m", "hparams_search=loss_weights", "+experiment=frcnn_r152_r50", "data.root=x"]
    assert script("defeat-train", *words, "teacher.weights=x").line.endswith("pip install 'defeat[sweep]'")


@pytest.mark.parametrize("key", ["data.root", "trainer.max_steps", "optim.optimizer.lr"])
@pytest.mark.parametrize(
    "hint", ["", "\nDid you mean to override {key}?", "\nDid you mean to override one of a, {key}?"]
)
def test_what_was_typed_is_never_proposed(key: str, hint: str) -> None:
    line = explain(
        ConfigCompositionException(f"Could not override '{key}'.{hint.format(key=key)}"), "train", []
    )
    assert line is not None
    assert line.startswith(f"unknown key {key}: ")
    proposed = re.findall(r"did you mean (.*?)\?", line)
    assert not [words for words in proposed if key in words.split(" or ")]


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


def test_a_working_folder_that_is_gone_is_told(
    script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "no longer exists" in script("defeat-train", "data=coco", "data.root=/x").line
