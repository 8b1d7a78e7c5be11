"""The study of a hyper-parameter search, for Optuna's sweeper: conf/hydra/sweeper/study.yaml."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from defeat.errors import ConfigError, StorageError
from defeat.io.atomic_write import cannot_write


class StudyJournal(JournalStorage):
    """Optuna's storage in a file, with a clear error where a search has found nothing."""

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Find the best trial.

        Raises:
            ConfigError: no trial has ended with a value.
        """
        try:
            return super().get_best_trial(study_id)
        except ValueError as error:
            name = self.get_study_name_from_id(study_id)
            raise ConfigError(
                f"no trial of the study {name} has ended with a value: see above why each failed"
            ) from error


def journal(path: str) -> StudyJournal:
    """Open the file that a study is kept in, or begin a new one.

    Processes share it safely, on one machine or on several with a common file system, NFS included: a
    symbolic link beside the file is the lock. Optuna takes the lock of a process that died after 30 s.

    Args:
        path: file of the study; folders that are missing are made.

    Raises:
        StorageError: the file or its folder cannot be written.
        ConfigError: the file holds something else, or its last line was cut off.
    """
    # Optuna links the lock to the path as it is given: of a relative one it could not tell the lock's age.
    file = Path(path).absolute()
    other = "choose another file for the study by hydra.sweeper.storage.path"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as content:  # Optuna would find out at the first trial that it may not write
            _check(content)
        return StudyJournal(JournalFileBackend(str(file)))
    except OSError as error:
        raise StorageError(f"{cannot_write(file, error)}; {other}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not a study's journal, or was cut off; {other}") from error


def _check(content: BinaryIO) -> None:
    """Refuse a journal whose first or last line is damaged.

    Optuna overlooks a last line that it cannot read and appends to it, after which it can read nothing.
    """
    if content.tell():
        content.seek(0)
        json.loads(content.readline())["op_code"]
        content.seek(-1, os.SEEK_END)
        if content.read() != b"\n":
            raise ValueError("the last line is not complete")


class TrialSampler(BaseSampler):
    """Tree-structured Parzen estimator that draws a trial from a seed, the trial's number and the study.

    Optuna's own sampler has one generator for each process: every process that shares a study, and every
    later command that joins it, would draw the same first trials once more. Here trials that are running
    count as bad ones, so that processes keep away from each other.

    Args:
        seed: 0 or more; trial n is drawn from (seed, n).
        startup_trials: number of trials that are drawn at random before the estimator takes over.

    Raises:
        ConfigError: the seed is negative.
    """

    def __init__(self, seed: int, startup_trials: int = 10) -> None:
        if seed < 0:
            raise ConfigError(f"hydra.sweeper.sampler.seed={seed}: must be 0 or more")
        self._seed = seed
        self._startup_trials = startup_trials
        self._samplers: dict[int, TPESampler] = {}  # by the numbers of the trials that are running

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make a sampler for the trial, seeded by its number."""
        (seed,) = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # constant_liar, since Optuna 2.8
            self._samplers[trial.number] = TPESampler(
                seed=int(seed), n_startup_trials=self._startup_trials, constant_liar=True
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return an empty space: no parameters are drawn together."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no values: no parameters are drawn together."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter of a trial."""
        sampler = self._samplers[trial.number]
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Drop the trial's sampler."""
        del self._samplers[trial.number]
