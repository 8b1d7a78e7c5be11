"""Hyper-parameter searches: ``defeat-train -m hparams_search=...``."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from defeat.cli import train as train_script
from defeat.config import compose_config, conf_dir
from defeat.errors import ConfigError, StorageError
from defeat.optuna_study import TrialSampler, journal
from tests.helpers.console import Run, logged, only, process_environment
from tests.helpers.narrow import IN_A_PROCESS
from tests.helpers.tiny import tiny

SEARCHES = {  # and an experiment that has what is searched
    "adamw": "scenes_plain",
    "loss_weights": "frcnn_r152_r50",
    "neck_weights": "retinanet_r152_r50",
    "sgd": "frcnn_r50",
}
SPACE = {"a": FloatDistribution(0.1, 10, log=True), "b": FloatDistribution(0.1, 10, log=True)}


def words(scenes: Path, *more: str) -> list[str]:
    """Of a search for the learning rate with the lowest loss, by tiny trainings."""
    sized = [word for word in tiny(Path(), scenes, "~logger.tensorboard") if not word.startswith("run_dir=")]
    goal = ["optimized_metric=train/loss", "hydra.sweeper.direction=minimize"]
    return ["-m", "hparams_search=adamw", "+experiment=scenes_plain", *sized, *goal, *more]


def in_a_process(*words: str) -> subprocess.Popen[str]:
    """Start ``defeat-train`` in the present folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "defeat.cli.train", *words, IN_A_PROCESS],
        env=process_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trials_of(path: str = "runs/studies/scenes_plain_adamw.journal") -> list[FrozenTrial]:
    """What is in the one study of a journal."""
    return optuna.load_study(study_name=None, storage=journal(path)).trials


def params(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials]


def test_every_search_is_known_here() -> None:
    assert sorted(path.stem for path in (conf_dir() / "hparams_search").glob("*.yaml")) == sorted(SEARCHES)


@pytest.mark.parametrize(("search", "experiment"), SEARCHES.items())
def test_what_is_searched_exists_and_its_default_is_the_middle(
    search: str, experiment: str, script: Run
) -> None:
    ended = script("defeat-train", f"hparams_search={search}", f"+experiment={experiment}", "--cfg", "all")
    assert ended.status == 0
    config = OmegaConf.create(ended.out)
    sweeper = config.hydra.sweeper
    assert sweeper._target_ == "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    assert sweeper.direction == "maximize"
    assert config.optimized_metric == "val/AP"
    assert sweeper.study_name == f"{experiment}_{search}"
    assert sweeper.storage.path == f"runs/studies/{experiment}_{search}.journal"
    plain = compose_config("train", [f"+experiment={experiment}", "run_dir=x"])
    assert len(sweeper.params) >= 2
    for key, text in sweeper.params.items():
        (override,) = OverridesParser.create().parse_overrides([f"{key}={text}"])
        interval = override.value()
        assert isinstance(interval, IntervalSweep)
        assert "log" in interval.tags
        middle = math.sqrt(interval.start * interval.end)
        assert OmegaConf.select(plain, key) == pytest.approx(middle, rel=0.6), key


def test_a_search_is_joined_by_a_later_command(script: Run, scenes: Path, tmp_path: Path) -> None:
    ended = script("defeat-train", *words(scenes, "hydra.sweeper.n_trials=2"))
    assert ended.status == 0, ended.err
    assert "alembic" not in ended.out
    first = trials_of()
    assert len(first) == 2
    joining = script("defeat-train", *words(scenes, "hydra.sweeper.n_trials=1"))
    assert joining.status == 0, joining.err
    trials = trials_of()
    assert params(trials[:2]) == params(first)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert len({trial.params["optim.optimizer.lr"] for trial in trials}) == 3
    sweeps = sorted(Path("runs/sweeps").iterdir())
    runs = [sweeps[0] / "0", sweeps[0] / "1", sweeps[1] / "0"]
    for trial, run in zip(trials, runs, strict=True):
        config = OmegaConf.load(run / "config.yaml")
        assert trial.params == {key: OmegaConf.select(config, key) for key in trial.params}
        assert trial.value == pytest.approx(logged(run, "train/loss")[1], rel=1e-6)
    for sweep, known in zip(sweeps, (trials[:2], trials), strict=True):
        best = min(known, key=lambda trial: trial.value or math.inf)
        results = OmegaConf.load(sweep / "optimization_results.yaml")
        assert results.best_params == best.params
        assert results.best_value == best.value


@pytest.mark.slow
def test_processes_search_at_the_same_time(scenes: Path, tmp_path: Path) -> None:
    together = [in_a_process(*words(scenes, "hydra.sweeper.n_trials=2")) for _ in range(2)]
    for process in together:
        out, _ = process.communicate()
        assert process.returncode == 0, out
    trials = trials_of()
    assert [trial.number for trial in trials] == list(range(4))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert len({trial.params["optim.optimizer.lr"] for trial in trials}) == 4
    configs = [OmegaConf.load(path) for path in Path("runs/sweeps").glob("*/?/config.yaml")]
    rates = sorted(OmegaConf.select(config, "optim.optimizer.lr") for config in configs)
    assert rates == sorted(trial.params["optim.optimizer.lr"] for trial in trials)


class Training:
    """Stands for the training: ends as it is told, one after the other."""

    def __init__(self, *ends: float | Exception | None) -> None:
        self.ends = list(ends)

    def __call__(self, config: DictConfig) -> float | None:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


def search(script: Run, monkeypatch: pytest.MonkeyPatch, *ends: float | Exception | None) -> Any:
    monkeypatch.setattr(train_script, "run", Training(*ends))
    study = ["hparams_search=adamw", "+experiment=scenes_plain", f"hydra.sweeper.n_trials={len(ends)}"]
    return script("defeat-train", "-m", *study)


def test_the_search_goes_on_after_a_trial_that_failed(script: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is how a figure that is nan comes back."""
    ends = [0.25, None, ConfigError("a loss is nan"), RuntimeError("out of memory"), 0.5]
    ended = search(script, monkeypatch, *ends)
    assert ended.status == 0, ended.err
    ok, failed = TrialState.COMPLETE, TrialState.FAIL
    trials = trials_of()
    assert [trial.state for trial in trials] == [ok, failed, failed, failed, ok]
    assert [trial.value for trial in trials] == [0.25, None, None, None, 0.5]
    results = OmegaConf.load(only(Path("runs/sweeps")) / "optimization_results.yaml")
    assert results.best_value == 0.5
    assert results.best_params == trials[4].params
    assert "a loss is nan" in ended.out
    assert "out of memory" in ended.out


def test_a_search_without_any_figure_says_so(script: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = search(script, monkeypatch, None, ConfigError("no such file"))
    assert ended.status == 1
    assert "Traceback" not in ended.err + ended.out
    assert ended.err.splitlines()[-1].startswith("error: no trial of the study scenes_plain_adamw ")
    assert [trial.state for trial in trials_of()] == [TrialState.FAIL] * 2


def draw(study: optuna.Study, count: int) -> list[dict[str, Any]]:
    """Ask for trials, one after the other, and give each a figure."""
    drawn = []
    for _ in range(count):
        trial = study.ask(SPACE)
        study.tell(trial, -abs(math.log(trial.params["a"])))
        drawn.append(trial.params)
    return drawn


def study_in(storage: Any, sampler: TrialSampler | None = None) -> optuna.Study:
    sampler = sampler or TrialSampler(seed=0, startup_trials=3)
    return optuna.create_study(
        study_name="s", storage=storage, sampler=sampler, load_if_exists=True, direction="maximize"
    )


def test_trials_are_drawn_alike_by_one_command_and_by_several(tmp_path: Path) -> None:
    whole = draw(study_in(journal("whole")), 8)
    parts = [draw(study_in(journal("parts")), count) for count in (2, 1, 4, 1)]
    assert [*chain(*parts)] == whole
    values = [value for drawn in whole for value in drawn.values()]
    assert len(set(values)) == 16  # no draw repeats another trial's, or the trial's other parameter
    other = draw(study_in(journal("other"), TrialSampler(seed=1, startup_trials=3)), 2)
    assert other != whole[:2]


def test_trials_that_are_drawn_together_differ(tmp_path: Path) -> None:
    study = study_in(journal("together"))
    draw(study, 3)
    asked = [study.ask() for _ in range(3)]  # as the sweeper does with n_jobs=3
    for trial in asked:
        for name, distribution in SPACE.items():
            trial._suggest(name, distribution)
    assert len({value for trial in asked for value in trial.params.values()}) == 6


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed=-1: must be 0 or more"):
        TrialSampler(seed=-1)


def test_a_journal_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(journal("new/folder/study.journal"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    draw(study, 2)
    assert list(elsewhere.iterdir()) == []
    assert only(tmp_path / "new" / "folder").name == "study.journal"  # and no lock is left
    assert len(trials_of(str(tmp_path / "new" / "folder" / "study.journal"))) == 2


def test_the_lock_of_a_dead_process_tells_its_age(tmp_path: Path) -> None:
    """Optuna looks through the lock at the journal: a link that leads nowhere is waited for for ever."""
    storage = journal("study.journal")
    lock = storage._backend._lock
    lock.acquire()
    link = Path("study.journal.lock")
    assert link.is_symlink()
    assert link.exists()
    lock.release()


@pytest.mark.parametrize("content", [b"\x00\xff\n", b"a note\n", b"a note", b'{"key": 1}\n', b"[]\n"])
def test_a_file_that_is_no_journal_is_left_alone(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"notes\.txt is not a study's journal, or was cut off; choose another file"
    ):
        journal(str(file))
    assert file.read_bytes() == content


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path}/file/study cannot be written")):
        journal("file/study")
