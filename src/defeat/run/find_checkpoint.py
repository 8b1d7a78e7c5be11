"""Find the checkpoint that a run goes on from, by what checkpoints say of the runs that wrote them."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_only

from defeat.detectors.weights import load_plain
from defeat.errors import ConfigError, DefeatError
from defeat.io.text import quote
from defeat.run.resume import config_differences, flat_config
from defeat.training.callbacks.exact_resume import loop_position

log = logging.getLogger(__name__)

LAST = "last.ckpt"

OF_ONE_RUN = ("run_dir", "ckpt_path", "force_resume")
"""Keys that differ between two starts of the same job of a sweep."""


class SavedRun(NamedTuple):
    """What a checkpoint says of the run that wrote it."""

    path: Path
    config: Mapping[str, Any]
    started: str
    """Time at which the run began, ISO 8601 in UTC, by which runs are told apart; empty in older ones."""
    resumed_from: Sequence[str]
    """``started`` of the runs that it goes on from."""
    steps: int

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.config.get("name"))


def find_checkpoint(config: Mapping[str, Any], *, swept: bool) -> Path | None:
    """Resolve ``ckpt_path``: None, a file, ``last`` or ``auto``.

    ``last`` is the checkpoint of the latest run of this name or, in a sweep, of this job. Of several runs
    those of the same training as this one come first (seed, networks, losses, optimiser ...), then the one
    that began last, unless another goes on from it. ``auto`` is the same where there is one, and a new start
    where there is none.

    Args:
        config: of the run, in plain containers.
        swept: the run is a job of a sweep.

    Raises:
        ConfigError: there is no such checkpoint.
        WeightsError: there is none that can be read.
    """
    asked = config["ckpt_path"]
    if asked is None:
        return None
    if asked not in ("last", "auto"):
        if not Path(asked).is_file():
            raise ConfigError(f"ckpt_path={asked}: no such file; give a checkpoint, `last` or `auto`")
        return Path(asked)
    folder = Path(config["run_dir"]).parent if swept else Path(config["output_root"]) / config["name"]
    saved = list(_read_all(folder, _file_name(config)))
    own = _of_job(saved, config) if swept else _of_name(saved, config)
    if own:
        return _latest(own, config)
    others = ", ".join(sorted({quote(run.name) for run in saved}))
    what = "of this job" if swept else f"of the name {quote(config['name'])}"
    beside = f" (there are some of {others})" if others and not swept else ""
    if asked == "auto":
        _say(f"ckpt_path=auto: {folder} has no checkpoint {what}{beside}: a new start")
        return None
    raise ConfigError(
        f"ckpt_path=last: {folder} has no {_file_name(config)} {what}{beside}; leave ckpt_path out, write "
        "`auto`, or give a file"
    )


def _file_name(config: Mapping[str, Any]) -> str:
    return Path(((config.get("callbacks") or {}).get("last") or {}).get("path") or LAST).name


def _read_all(folder: Path, name: str) -> Iterator[SavedRun]:
    """Read the records of all checkpoints below a folder; what cannot be read is said, unless nothing can."""
    errors, read = [], False
    for path in sorted(folder.rglob(glob.escape(name))):
        try:
            yield _read(path)
            read = True
        except DefeatError as error:
            errors.append(error)
    if errors and not read:
        raise errors[0]
    for unread in errors:
        log.warning("left out: %s", unread)


def _read(path: Path) -> SavedRun:
    content = load_plain(path, mapped=True)
    try:
        loop_position(content)
        made = content.get("defeat") or {}
        run = made.get("run") or {}
        return SavedRun(
            path,
            dict(made.get("config") or {}),
            str(run.get("started") or ""),
            [str(one) for one in run.get("resumed_from") or ()],
            int(content["global_step"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no checkpoint of a training of this project: {error!r}") from error


def _of_name(saved: Sequence[SavedRun], config: Mapping[str, Any]) -> list[SavedRun]:
    """Those of a run's name, by their own word: a folder of runs may hold those of longer names."""
    own = [run for run in saved if PurePath(run.name) == PurePath(str(config["name"]))]
    return [run for run in own if not config_differences(run.config, config)] or own


def _of_job(saved: Sequence[SavedRun], config: Mapping[str, Any]) -> list[SavedRun]:
    """Those with all settings of a sweep's job, whatever its number was; else those of its number."""
    number = _job(Path(config["run_dir"]))
    sweep = Path(config["run_dir"]).parent
    same = [run for run in saved if _settings(run.config) == _settings(config)]
    return same or [run for run in saved if _job(sweep / run.path.relative_to(sweep).parts[0]) == number]


def _job(folder: Path) -> str:
    """A job's folder is called ``7`` or, where it is run again, ``7_2``, ``7_3`` ..."""
    return re.sub(r"_\d+$", "", folder.name)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings but for where the run lies and what it goes on from."""
    run_dir = str(config.get("run_dir"))
    return {
        key: value.replace(run_dir, "") if isinstance(value, str) else value
        for key, value in flat_config(config)
        if key not in OF_ONE_RUN
    }


def _latest(own: Sequence[SavedRun], config: Mapping[str, Any]) -> Path:
    gone_on_from = {started for run in own for started in run.resumed_from}
    ends = [run for run in own if run.started not in gone_on_from]
    # A clock may have been put back since. Times of files are wrong where a run was copied or restored, and
    # count for older checkpoints alone.
    latest = max(
        ends or own,
        key=lambda run: (
            max([run.started, *run.resumed_from]),
            0 if run.started else run.path.stat().st_mtime,
            run.steps,
        ),
    )
    began = (
        f"which began at {latest.started}"
        if latest.started
        else "the latest by the time of its file, for older checkpoints do not say when their runs began"
    )
    among = f", the latest of {len(own)}" if len(own) > 1 and latest.started else ""
    _say(
        f"ckpt_path={config['ckpt_path']}: goes on from {latest.path}: step {latest.steps} of a run of "
        f"{quote(latest.name)}, {began}{among}"
    )
    return latest.path


@rank_zero_only
def _say(text: str) -> None:
    log.info("%s", text)
