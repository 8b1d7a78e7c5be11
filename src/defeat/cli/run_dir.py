"""The folder of a run or a sweep, made before Hydra writes into it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from defeat.cli.ranks import process_rank
from defeat.config import expand_paths, quoted
from defeat.errors import ConfigError
from defeat.io.run_dirs import claim_folder, make_free_folder, put_aside

NO_LOG = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}
"""Logging without a handler: then Python prints warnings and errors to standard error, and nothing else."""


SWEEP_FILES = ("multirun.yaml", "optimization_results.yaml")
"""Files that Hydra and its sweepers write beside the folders of the jobs, over those that exist."""


class RefusedError(BaseException):
    """Carries an error out of a callback, where Hydra turns an Exception into a warning and goes on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class RunDirCallback(Callback):
    """Hydra callback that decides on the folder of a run or a sweep.

    Hydra names its folders by the second and uses them whether they exist or not: two runs started in the
    same second would share one, and a run in the folder of another would overwrite its ``.hydra``. Here the
    second one gets a number, and a folder that the user names (``run_dir``, ``hydra.run.dir``) has to be new
    or empty.

    Each process that torchrun or srun starts composes its configuration by itself, perhaps in another second
    or on another machine: the first one gets a folder and a log, the others write nothing.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder and put it into ``hydra.run.dir``.

        Raises:
            RefusedError: it carries the ConfigError or StorageError to show.
        """
        with _refusing():
            here = process_rank()
            if here.has_run_dir:
                return
            expand_paths(config)
            if here.rank > 0:
                config.hydra.run.dir = "."  # Hydra makes one if it does not exist; this one does
                config.hydra.output_subdir = None
                config.hydra.job_logging = NO_LOG
                return
            wanted = config.run_dir if _has_run_dir(config) else config.hydra.run.dir
            _check_name(wanted)
            if _is_overridden(config, "hydra.run.dir"):
                folder = Path(config.hydra.run.dir)
                claim_folder(folder, f"hydra.run.dir={folder}", config.hydra.output_subdir)
            elif _has_run_dir(config):
                # Then Hydra's files belong there too, rather than into a folder for them alone.
                config.hydra.run.dir = str(config.run_dir)
                key = "output" if _is_overridden(config, "output") else "run_dir"
                claim_folder(Path(config.run_dir), f"{key}={config.run_dir}", config.hydra.output_subdir)
            elif config.hydra.run.dir != ".":  # of a command that writes one file, where it is told to
                config.hydra.run.dir = str(make_free_folder(Path(config.hydra.run.dir)))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder and put it into ``hydra.sweep.dir``, for all jobs.

        Raises:
            RefusedError: it carries the ConfigError or StorageError to show.
        """
        with _refusing():
            here = process_rank()
            if here.launched > 1:
                raise ConfigError(
                    f"a sweep (-m) cannot be started as {here.launched} processes (torchrun or srun): "
                    "start one process, or give each value a command of its own"
                )
            sweep = expand_paths(config).hydra.sweep
            _check_name(sweep.dir)
            if _is_overridden(config, "hydra.sweep.dir"):
                # A sweep may be begun again in its folder, where its jobs go on (ckpt_path=auto).
                for name in SWEEP_FILES:
                    put_aside(Path(sweep.dir) / name)
            else:
                sweep.dir = str(make_free_folder(Path(sweep.dir)))
            # Every job is composed anew, from these words.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(sweep.dir)}")


def job_folder(sweep: str, name: int | str) -> str:
    """Make the folder of a sweep's job and return its name: ``7``, or ``7_2`` where 7 exists.

    A job runs again where its batch system requeues it, or where the same sweep is begun again in the same
    folder. The folder belongs to the job's first process; Hydra wants one for each of the others too.
    """
    rank = process_rank().rank
    return f"{name}_rank{rank}" if rank else make_free_folder(Path(sweep) / str(name)).name


# Registered at import, since a job that a batch system starts elsewhere imports this module for its callback
# and nothing else of cli/. Cached, since whoever asks again means the same folder.
OmegaConf.register_new_resolver("job_folder", job_folder, use_cache=True, replace=True)


def register() -> None:
    """Give every configuration the callback, also one that the user names by ``--config-path``."""
    callbacks = {"run_dir": {"_target_": f"{RunDirCallback.__module__}.{RunDirCallback.__qualname__}"}}
    ConfigStore.instance().store(group="hydra", name="config", node=HydraConf(callbacks=callbacks))


def remove_unused() -> None:
    """Remove the folder of this run if it holds nothing but Hydra's files.

    Otherwise a corrected command that names the same folder would be refused.
    """
    if not HydraConfig.initialized() or process_rank().rank > 0:
        return
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.RUN or OmegaConf.is_missing(hydra.runtime, "output_dir"):
        return
    folder = Path(hydra.runtime.output_dir)
    if folder == Path.cwd():
        return
    if {path.name for path in folder.iterdir()} <= {hydra.output_subdir, f"{hydra.job.name}.log"}:
        shutil.rmtree(folder, ignore_errors=True)


def _check_name(folder: str) -> None:
    """Refuse names that some of those who write into the folder of a run would take for something else."""
    path = str(Path(folder).absolute())
    if "::" in path or "${" in path:  # fsspec cuts at the first, Hydra resolves the second
        raise ConfigError(
            f"{path}: the folder of a run can have neither '::' nor '${{' in its path; choose another"
        )
    if not path.isprintable():
        raise ConfigError(f"{path}: the folder of a run has to have a name that prints; choose another")


def _is_overridden(config: DictConfig, key: str) -> bool:
    # Unresolved: a word such as run_dir=${hydra:runtime.output_dir}/x has no value yet.
    words: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
    return any(word.lstrip("+").partition("=")[0] == key for word in (*words["hydra"], *words["task"]))


def _has_run_dir(config: DictConfig) -> bool:
    """Whether run_dir names another folder than the one that Hydra makes of hydra.run.dir."""
    if "run_dir" not in config:
        return False
    written = OmegaConf.to_container(OmegaConf.masked_copy(config, ["run_dir", "output"]), resolve=False)
    assert isinstance(written, dict)
    folder = written["output"] if written["run_dir"] == "${output}" else written["run_dir"]
    return "${hydra" not in str(folder)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RefusedError(error) from error
