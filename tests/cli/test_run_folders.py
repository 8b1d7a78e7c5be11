"""Every run has a folder of its own, whoever else starts one, and nothing that is there is written over."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from defeat.cli import evaluate
from defeat.cli.launch import launch
from defeat.cli.ranks import ProcessRank, process_rank
from defeat.config import compose_config
from defeat.errors import ConfigError
from tests.helpers.console import Ended, Run, only

Start = Callable[..., Ended]

log = logging.getLogger("a.task")


@pytest.fixture(autouse=True)
def _second(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs of a test are started in the same second."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("hydra.core.utils.datetime", Clock)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves may be run within a batch system."""
    names = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK")
    for name in (*names, "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Start:
    """Start a task of a moment as ``defeat-eval`` starts its own, whose configuration takes half the time."""
    return starter("eval", monkeypatch, capfd)


@pytest.fixture
def start_training(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Start:
    """The same as ``defeat-train``, which alone has sweeps and several processes."""
    return starter("train", monkeypatch, capfd)


def starter(command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Start:
    """Start a task as a command does: it logs, and writes its run_dir."""

    def task(config: DictConfig) -> None:
        log.info("at work")
        log.warning("take care")
        path = Path(config.run_dir, "result")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(config.run_dir)

    def run(*words: str) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", [f"defeat-{command}", *words, "data.root=x"])
        status = 0
        try:
            launch(task, command)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return Ended(status, *capfd.readouterr())

    return run


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their paths in it; folders without a file are empty."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))
    }


AT_ONCE = """
import sys, time
from pathlib import Path
from defeat.errors import ConfigError

from defeat.io.run_dirs import claim_folder, make_free_folder

folder, me = Path(sys.argv[1]), sys.argv[2]
(folder / "ready" / me).touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(20):
    print(make_free_folder(folder / "runs" / "x").name)
    for kind in ("new", "empty"):
        try:
            claim_folder(folder / kind / str(number), "run_dir=x", ".hydra")
            print(kind, number)
        except ConfigError:
            pass
"""
"""What each of several processes does as soon as all are ready."""


def test_processes_that_start_at_once_have_a_folder_each(tmp_path: Path) -> None:
    (tmp_path / "ready").mkdir()
    for number in range(20):
        (tmp_path / "empty" / str(number)).mkdir(parents=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, tmp_path, str(me)], stdout=subprocess.PIPE, text=True
        )
        for me in range(6)
    ]
    while len(list((tmp_path / "ready").iterdir())) < 6:
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    lines = [line for process in started for line in process.communicate()[0].splitlines()]
    # 20 times 6 folders, each made for one process, and each of the others claimed by one
    expected = [
        "x",
        *(f"x_{n}" for n in range(2, 121)),
        *(f"{k} {n}" for k in ("new", "empty") for n in range(20)),
    ]
    assert sorted(lines) == sorted(expected)
    assert [process.returncode for process in started] == [0] * 6


def test_runs_of_the_same_second(start: Start, tmp_path: Path) -> None:
    assert start().status == 0
    runs = tmp_path / "runs" / "eval"
    first, second = runs / "2026-01-02_03-04-05", runs / "2026-01-02_03-04-05_2"
    before = content(first)
    assert {"eval.log", ".hydra/overrides.yaml", "result"} <= before.keys()
    assert start("seed=1").status == 0
    assert content(first) == before
    assert OmegaConf.load(second / ".hydra" / "config.yaml").seed == 1
    assert (second / "result").read_text() == str(second)
    assert {p.name for p in runs.iterdir()} == {first.name, second.name}


@pytest.mark.parametrize("name", ["defeat-train", "defeat-eval", "defeat-demo"])
@pytest.mark.parametrize("key", ["run_dir", "hydra.run.dir"])
def test_a_folder_with_files_is_refused(name: str, key: str, script: Run, tmp_path: Path) -> None:
    job = name.removeprefix("defeat-")
    for path in ("mine/.hydra/config.yaml", f"mine/{job}.log"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("of another run")
    before = content(tmp_path)
    ended = script(name, f"{key}=mine")
    assert f"{key}=mine: there is .hydra already" in ended.line
    assert content(tmp_path) == before


def test_a_folder_that_is_named(start_training: Start, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words in (["run_dir=a/new one"], ["run_dir=empty"], ["hydra.run.dir=b"]):
        assert start_training(*words).status == 0
    # Hydra's files and the log are in it, and nowhere else
    own = [
        ".hydra",
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "result",
        "train.log",
    ]
    for folder in ("a/new one", "empty", "b"):
        assert list(content(tmp_path / folder)) == own
    assert {p.name for p in tmp_path.iterdir()} == {"a", "empty", "b"}
    # which is where the run is, but for hydra.run.dir and run_dir that are both named
    assert start_training("hydra.run.dir=c", "run_dir=${hydra:runtime.output_dir}/d").status == 0
    assert start_training("run_dir=${output_root}/e").status == 0
    assert (tmp_path / "c" / "d" / "result").read_text() == str(tmp_path / "c" / "d")
    assert list(content(tmp_path / "runs" / "e")) == own


def test_the_configuration_of_a_run_as_a_new_one(start: Start, tmp_path: Path) -> None:
    OmegaConf.save(compose_config("eval", ["run_dir=runs/old"]), tmp_path / "config.yaml")
    again = ["--config-path", str(tmp_path), "--config-name", "config"]
    assert start(*again).status == 0
    assert start(*again).line.startswith("run_dir=runs/old: there is .hydra already")
    assert start(*again, "run_dir=runs/new").status == 0
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"old", "new"}
    assert not (tmp_path / "outputs").exists(), "Hydra's own default"


def test_a_command_that_is_corrected_may_name_the_same_folder(script: Run, tmp_path: Path) -> None:
    wrong = script("defeat-eval", "run_dir=x").line
    assert wrong.startswith("give either checkpoint=")
    assert script("defeat-eval", "run_dir=x").line == wrong
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_has_written_stays_when_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(config: DictConfig) -> None:
        Path(config.run_dir, "result").touch()
        raise ConfigError("too late")

    monkeypatch.setattr("sys.argv", ["defeat-eval", "run_dir=x"])
    with pytest.raises(SystemExit):
        launch(fail, "eval")
    assert {"result", ".hydra", "eval.log"} <= {p.name for p in (tmp_path / "x").iterdir()}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run_dir=file"], "run_dir=file: that is a file"),
        (["run_dir=file/x"], "file/x cannot be written: "),
        (["output_root=file"], "cannot be written: "),
        (["-m", "seed=1,2", "output_root=file"], "cannot be written: "),
    ],
)
def test_where_no_folder_can_be(words: list[str], line: str, start_training: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert line in start_training(*words).line
    assert content(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize(
    "words",
    [["--cfg", "all"], ["--cfg", "job", "--resolve", "run_dir=x"], ["--hydra-help"], ["--info", "all"]],
)
def test_to_look_makes_no_folder(words: list[str], start: Start, tmp_path: Path) -> None:
    start(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_one_folder(start_training: Start, tmp_path: Path) -> None:
    root = "it's a=b,{c} \\"
    sweep = ["-m", "seed=1,2", "output_root='" + root.replace("\\", "\\\\").replace("'", "\\'") + "'"]
    assert start_training(*sweep).status == 0
    sweeps = tmp_path / root / "sweeps"
    before = content(only(sweeps))
    assert start_training(*sweep).status == 0
    assert content(sweeps / "2026-01-02_03-04-05") == before
    for folder in sweeps.iterdir():
        assert {p.name for p in folder.iterdir()} == {"0", "1", "multirun.yaml"}
        for job in ("0", "1"):
            assert (folder / job / "result").read_text() == str(folder / job)
            assert OmegaConf.load(folder / job / ".hydra" / "config.yaml").seed == int(job) + 1
    assert {p.name for p in sweeps.iterdir()} == {"2026-01-02_03-04-05", "2026-01-02_03-04-05_2"}


def test_a_sweep_that_is_begun_again_in_its_folder(start_training: Start, tmp_path: Path) -> None:
    sweep = ["-m", "hydra.sweep.dir=swept"]
    assert start_training(*sweep, "seed=1,2").status == 0
    before = content(tmp_path / "swept")
    assert start_training(*sweep, "seed=3,4").status == 0
    after = content(tmp_path / "swept")
    assert {p.name for p in (tmp_path / "swept").iterdir() if p.is_dir()} == {"0", "1", "0_2", "1_2"}
    assert after["multirun_1.yaml"] == before.pop("multirun.yaml")
    assert before.items() <= after.items()
    assert OmegaConf.load(tmp_path / "swept" / "1_2" / ".hydra" / "config.yaml").seed == 4


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "mine"}
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ProcessRank(0, 1, False)),
        (TORCHRUN | {"RANK": "1"}, ProcessRank(1, 2, False)),
        # torchrun within srun
        (TORCHRUN | {"RANK": "0"} | SRUN | {"SLURM_PROCID": "1"}, ProcessRank(0, 2, False)),
        # left over: Lightning reads neither of them without torchrun
        ({"RANK": "1", "WORLD_SIZE": "2"}, ProcessRank(0, 1, False)),
        (SRUN | {"SLURM_PROCID": "1"}, ProcessRank(1, 2, False)),
        (SRUN | {"SLURM_PROCID": "1", "SLURM_JOB_NAME": "interactive"}, ProcessRank(0, 1, False)),
        # in a batch script, without srun
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ProcessRank(0, 1, False)),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, ProcessRank(0, 1, False)),
        # started by Lightning, on the first node and on the second
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, ProcessRank(1, 1, True)),
        ({"LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4"}, ProcessRank(1, 1, True)),
        # the one that is started by hand on the second node
        ({"NODE_RANK": "1", "MASTER_ADDR": "a"}, ProcessRank(1, 1, False)),
    ],
)
def test_which_process_this_is(
    environment: dict[str, str], expected: ProcessRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (TORCHRUN | {"RANK": "1"}, []),
        (TORCHRUN | {"RANK": "1"}, ["hydra.run.dir=there"]),
        (SRUN | {"SLURM_PROCID": "1"}, ["run_dir=there"]),
    ],
)
def test_a_further_process_makes_nothing_and_says_nothing(
    environment: dict[str, str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "train.log").write_text("of the first process")
    monkeypatch.setattr("sys.argv", ["defeat-train", *TWO, *words, "data.root=x"])
    seen: list[str] = []

    def task(config: DictConfig) -> None:
        log.info("at work")
        log.warning("take care")
        seen.append(config.run_dir)

    launch(task, "train")
    assert seen == (["there"] if words == ["run_dir=there"] else [str(tmp_path)])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "take care\n"
    assert content(tmp_path) == {"there": b"", "there/train.log": b"of the first process"}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_the_first_process_has_the_folder(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, start_training: Start, tmp_path: Path
) -> None:
    for name, value in ({"RANK": "0", "SLURM_PROCID": "0"} | environment).items():
        monkeypatch.setenv(name, value)
    ended = start_training(*TWO)
    assert ended.status == 0, ended.err
    assert "at work" in ended.out
    assert (only(tmp_path / "runs" / "train") / "result").is_file()


def test_a_process_that_lightning_starts_joins_the_folder(
    monkeypatch: pytest.MonkeyPatch, start: Start, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "eval.log").write_text("of the first process")
    given = ['hydra.run.dir="run"', "hydra.job.name=eval_ddp_process_1", "hydra.output_subdir=null"]
    assert start(*given).status == 0
    found = content(tmp_path / "run")
    assert list(found) == ["eval.log", "eval_ddp_process_1.log", "result"]
    assert found["result"] == str(tmp_path / "run").encode()
    assert found["eval.log"] == b"of the first process"


@pytest.mark.parametrize(
    ("rank", "name", "words", "parts"),
    [
        ("0", "defeat-train", ["data.root=x"], ["is for 1: add trainer=ddp", "trainer.num_nodes=<"]),
        (
            "1",
            "defeat-train",
            ["data.root=x", "trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2"],
            ["is for 4: add trainer=ddp", "trainer.num_nodes=<"],
        ),
        ("0", "defeat-eval", [], ["runs as one"]),
        ("1", "defeat-eval", [], ["runs as one"]),
        ("0", "defeat-demo", [], ["runs as one"]),
        ("0", "defeat-train", ["-m", "seed=1,2", "data.root=x", *TWO], ["a sweep (-m)", "start one process"]),
        ("1", "defeat-train", ["-m", "seed=1,2", "data.root=x", *TWO], ["a sweep (-m)", "start one process"]),
    ],
)
def test_processes_that_would_each_work_alone_are_refused(
    rank: str,
    name: str,
    words: list[str],
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    script: Run,
    tmp_path: Path,
) -> None:
    for key, value in (TORCHRUN | {"RANK": rank}).items():
        monkeypatch.setenv(key, value)
    line = script(name, *words).line
    assert line.startswith("rank 1: ") == (rank == "1")
    assert [part for part in ("2 processes", *parts) if part not in line] == [], line
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_devices_that_lightning_counts_are_left_to_it(
    monkeypatch: pytest.MonkeyPatch, start_training: Start
) -> None:
    for key, value in (TORCHRUN | {"RANK": "0"}).items():
        monkeypatch.setenv(key, value)
    assert start_training("trainer=ddp").status == 0
    assert "is for 1: add" in start_training("trainer.devices=auto").line


@pytest.mark.parametrize("name", ["evaluation.json", "results.json"])
def test_an_evaluation_is_not_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    config = compose_config("eval", [f"run_dir={tmp_path}", "checkpoint=x.ckpt", "save_results=true"])
    with pytest.raises(ConfigError, match=rf"{name} exists already: choose another folder by run_dir="):
        evaluate.run(config)
    assert content(tmp_path) == {name: b"{}"}
