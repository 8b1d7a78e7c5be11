"""How every console script starts: Hydra around a task, and errors as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from defeat.cli.completion import complete
from defeat.cli.error_messages import explain
from defeat.cli.help import help_text
from defeat.cli.overrides import check_choices, check_types, in_order, is_choice, parse, quote_texts
from defeat.cli.ranks import process_rank
from defeat.cli.run_dir import RefusedError, register, remove_unused
from defeat.cli.streams import prepare_streams
from defeat.cli.version import version_text
from defeat.config import compose_config, conf_dir, expand_paths, to_plain
from defeat.errors import ConfigError

FULL_ERROR = "HYDRA_FULL_ERROR"


def launch(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose ``config_name`` with the command line, check it, and run ``task`` on it under Hydra.

    A run gets a folder of its own, see :class:`~defeat.cli.run_dir.RunDirCallback`. The task alone
    imports torch and what is built on it, so that ``--help`` and mistakes are answered at once.

    Errors that the user can correct end the process with status 1 and one line on standard error; with
    ``hydra.verbose=true`` or HYDRA_FULL_ERROR=1 their traceback is shown. Any other error is a defect of the
    program and keeps its traceback.
    """
    prepare_streams()
    words = quote_texts(sys.argv[1:])
    if "--version" in words:  # Hydra would give its own
        print(version_text())
        return
    if "--help" in words or "-h" in words:
        print(help_text(config_name))
        return
    try:
        words = in_order(words)
    except ConfigError as error:
        _end(error, config_name, words)
    sys.argv[1:] = words
    complete(words, config_name)
    full_error = os.environ.get(FULL_ERROR)
    verbose = full_error is not None or any(map(_is_verbose, words))

    def checked(config: DictConfig) -> object:
        # Processes that the task starts, such as those of DDP, decide about tracebacks for themselves.
        with _environment(FULL_ERROR, full_error):
            try:
                _check(expand_paths(config), config_name)
                return task(config)
            except Exception as error:
                # Hydra must not see it, or it writes a line of its own. In a sweep that line names the job.
                if verbose or HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise
                _end(error, config_name, words)

    register()
    with _abort_together():
        try:
            check_choices(words)
            _check_working_folder()
            # Hydra would print its own cut-down traceback and exit; told so, it lets the error through.
            with _environment(FULL_ERROR, "1"), _unpacked():
                hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(
                    checked
                )()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if verbose:
                raise
            _end(error, config_name, words)


def _abort_together() -> AbstractContextManager[None]:
    """Let the processes that torchrun has started end together; a single process needs no torch for that."""
    if process_rank().launched == 1:
        return nullcontext()
    from defeat.cli.abort_together import abort_together

    return abort_together()


def _end(error: Exception, config_name: str, words: list[str]) -> NoReturn:
    """End the process with the error's line, or raise it again where the user cannot correct it."""
    line = explain(error, config_name, words)
    if line is None:
        raise error
    remove_unused()
    rank = process_rank().rank
    print(f"error: rank {rank}: {line}" if rank else f"error: {line}", file=sys.stderr)
    sys.exit(1)


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError(
            "the folder that this was started in no longer exists: cd to another one"
        ) from error


def _is_verbose(word: str) -> bool:
    key, _, value = word.lstrip("+").partition("=")
    return key == "hydra.verbose" and value.lower() not in ("false", "null")


@contextmanager
def _unpacked() -> Iterator[None]:
    """Raise the error that a callback has refused the run with."""
    try:
        yield
    except RefusedError as refused:
        raise refused.error from refused.error.__cause__


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable, or unset it for None, and restore it afterwards."""
    before = os.environ.get(name)
    _set(name, value)
    try:
        yield
    finally:
        _set(name, before)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _check(config: DictConfig, config_name: str) -> None:
    """Refuse what is wrong with the configuration as such, before anything is imported or built."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        wanted = " ".join(f"{key}=<{key.rpartition('.')[2]}>" for key in missing)
        raise ConfigError(f"{', '.join(missing)} not set: add {wanted}")
    to_plain(config)
    check_types(config, _defaults(config_name))
    _check_processes(config, config_name)


def _defaults(config_name: str) -> DictConfig:
    """Compose what the command would have without the values that its words and the user's files set."""
    job = HydraConfig.get()
    sources = [s for s in job.runtime.config_sources if s.provider not in ("hydra", "main", "schema")]
    folders = [f"{source.schema}://{source.path}" for source in sources]  # of the user's, by --config-dir
    more = [f"hydra.searchpath={folders}", "++run_dir=."]
    if job.job.config_name == config_name:
        choices = [word for word, override in parse(job.overrides.task) if is_choice(override)]
        return compose_config(config_name, [*choices, *more])
    # A file of the user's (--config-name), such as that of an earlier run: by the choices that it makes.
    with suppress(HydraException):
        chosen = {
            name: choice for name, choice in job.runtime.choices.items() if choice and name != "experiment"
        }
        words = [f"{name}={choice}" for name, choice in chosen.items() if not name.startswith("hydra/")]
        return compose_config(config_name, [*words, *more])
    return compose_config(config_name, more)


def _check_processes(config: DictConfig, config_name: str) -> None:
    """Refuse what each of several processes would do by itself, as if it were alone."""
    launched = process_rank().launched
    if launched == 1:
        return
    if config_name != "train":
        raise ConfigError(f"{launched} processes were started (torchrun or srun), but this runs as one")
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    known = devices * nodes if isinstance(devices, int) and devices > 0 else None
    # Lightning counts other devices by itself, and compares, but with strategy=auto and one device.
    if launched != known and (known is not None or config.trainer.strategy == "auto"):
        raise ConfigError(
            f"{launched} processes were started (torchrun or srun), but the configuration is for "
            f"{known or 1}: add trainer=ddp trainer.devices=<processes of a node> trainer.num_nodes=<nodes>"
        )
