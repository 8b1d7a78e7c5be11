"""Sweeps whose runs are jobs of their own: submitit on this machine, and on a stand-in for SLURM."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.helpers.console import Run, logged, process_environment
from tests.helpers.narrow import IN_A_PROCESS
from tests.helpers.tiny import tiny

# What of SLURM submitit uses. A job is a process of this machine, its tasks its children.
COMMON = f"""\
#!{sys.executable}
import os, re, subprocess, sys
state = os.environ["FAKE_SLURM"]
"""
SBATCH = """\
script = open(sys.argv[1]).read()
flags = dict(re.findall(r"#SBATCH --([\\w-]+)=(\\S+)", script))
log = open(f"{state}/sbatch.txt", "w")
log.write(script)
log.close()
last = int(re.match(r"0-(\\d+)", flags.get("array", "0-0"))[1])
for task in range(last + 1):
    env = {
        **os.environ,
        "SLURM_ARRAY_JOB_ID": "7000",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_JOB_ID": str(7000 + task + os.getpid() % 900),
        "SLURM_JOB_NAME": flags["job-name"],
        "SLURM_NNODES": flags["nodes"],
        "SLURM_NTASKS": str(int(flags["nodes"]) * int(flags["ntasks-per-node"])),
        "SLURM_NTASKS_PER_NODE": flags["ntasks-per-node"],
        "SLURM_NODELIST": "127.0.0.1",
    }
    job = f"bash {sys.argv[1]}.copy; echo $? > {state}/7000_{task}"
    open(f"{sys.argv[1]}.copy", "w").write(script)
    subprocess.Popen(["bash", "-c", job], env=env, start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7000")
"""
SRUN = """\
words, logs = sys.argv[1:], {}
while words[0].startswith("--"):
    word = words.pop(0)
    if word in ("--output", "--error"):
        logs[word] = words.pop(0)
tasks = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
    places = {"%A": "7000", "%a": os.environ.get("SLURM_ARRAY_TASK_ID", "0"), "%t": str(rank)}
    files = [open(re.sub("%.", lambda m: places[m[0]], logs[name]), "a") if name in logs else None
             for name in ("--output", "--error")]
    env = {
        **os.environ,
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": os.environ["SLURM_NTASKS"],
    }
    tasks.append(subprocess.Popen(words, env=env, stdout=files[0], stderr=files[1]))
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SACCT = """\
print("JobID|State|NodeList")
for task in range(8):
    ended = f"{state}/7000_{task}"
    code = open(ended).read().strip() if os.path.exists(ended) else None
    print(f"7000_{task}|{'RUNNING' if not code else 'COMPLETED' if code == '0' else 'FAILED'}|here")
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in's commands into PATH; the folder where it keeps what was submitted."""
    state = tmp_path / "slurm"
    state.mkdir()
    for name, body in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (state / name).write_text(COMMON + body)
        (state / name).chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setenv("PATH", f"{state}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return state


def words(scenes: Path, *more: str) -> list[str]:
    sized = [word for word in tiny(Path(), scenes, "~logger.tensorboard") if not word.startswith("run_dir=")]
    return ["-m", "+experiment=scenes_plain", *sized, IN_A_PROCESS, *more]


@pytest.fixture(autouse=True)
def _python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of jobs find the helpers of the tests."""
    monkeypatch.setenv("PYTHONPATH", process_environment()["PYTHONPATH"])


def runs(sweep: Path) -> list[Path]:
    return sorted(path for path in sweep.iterdir() if path.is_dir() and path.name.isdigit())


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*log.*")))


@pytest.mark.parametrize(
    ("name", "target", "kept"),
    [
        ("slurm", "SlurmLauncher", {"qos": None, "additional_parameters": {}}),
        ("local", "LocalLauncher", {"stderr_to_stdout": False, "nodes": 1}),
    ],
)
def test_launchers_build_on_those_of_the_plugin(name: str, target: str, kept: dict, script: Run) -> None:
    ended = script("defeat-train", f"hydra/launcher={name}", "+experiment=scenes_plain", "--cfg", "hydra")
    assert ended.status == 0
    launcher = OmegaConf.create(ended.out).hydra.launcher
    assert launcher._target_ == f"hydra_plugins.hydra_submitit_launcher.submitit_launcher.{target}"
    assert launcher.timeout_min == {"slurm": 1440, "local": 10080}[name]
    assert launcher.tasks_per_node == 1
    assert {key: launcher[key] for key in kept} == kept
    own = script(
        "defeat-train", f"hydra/launcher=submitit_{name}", "+experiment=scenes_plain", "--cfg", "hydra"
    )
    assert set(OmegaConf.create(own.out).hydra.launcher) == set(launcher)


@pytest.mark.slow
def test_a_sweep_side_by_side_on_this_machine(script: Run, scenes: Path, tmp_path: Path) -> None:
    ended = script("defeat-train", *words(scenes, "hydra/launcher=local", "seed=1,2"))
    assert ended.status == 0, ended.err
    (sweep,) = Path("runs/sweeps").iterdir()
    assert [run.name for run in runs(sweep)] == ["0", "1"]
    for run, seed in zip(runs(sweep), (1, 2), strict=True):
        assert OmegaConf.load(run / "config.yaml").seed == seed
        assert json.loads((run / "data.json").read_text())["splits"]["train"]["images"] == 8
        for name in (
            "environment.json",
            "detections.safetensors",
            "checkpoints/last.ckpt",
            "checkpoints/best.ckpt",
        ):
            assert (run / name).is_file(), name
        assert set(logged(run, "train/loss")) == {0, 1}


@pytest.mark.slow
def test_a_sweep_of_jobs_of_two_processes(slurm: Path, script: Run, scenes: Path, tmp_path: Path) -> None:
    """The tasks of a SLURM job are the processes of a run: nothing is started twice."""
    job = ["hydra/launcher=slurm", "hydra.launcher.tasks_per_node=2", "hydra.launcher.gpus_per_node=0"]
    run_of_two = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=2", "data.val_batch_size=2"]
    ended = script("defeat-train", *words(scenes, *job, *run_of_two, "seed=1,2"))
    (sweep,) = Path("runs/sweeps").iterdir()
    assert ended.status == 0, ended.err + logs(sweep)
    assert [run.name for run in runs(sweep)] == ["0", "1"]
    for run, seed in zip(runs(sweep), (1, 2), strict=True):
        assert OmegaConf.load(run / "config.yaml").seed == seed
        assert (run / "checkpoints" / "last.ckpt").is_file()
        assert set(logged(run, "train/loss")) == {0, 1}
        assert list(run.glob("csv*/metrics.csv")) == [run / "csv" / "metrics.csv"]
    batch = (slurm / "sbatch.txt").read_text()
    for line in (
        "ntasks-per-node=2",
        "nodes=1",
        "time=1440",
        "cpus-per-task=8",
        "signal=USR2@120",
        "array=0-1%2",
    ):
        assert f"#SBATCH --{line}\n" in batch, line
