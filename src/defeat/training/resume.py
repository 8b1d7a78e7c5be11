"""Which checkpoint a run goes on from."""

from __future__ import annotations

from pathlib import Path

from defeat.errors import ConfigError


def find_checkpoint(ckpt_path: str | None, runs: Path) -> str | None:
    """Resolve ``ckpt_path``: None, a file, or ``last`` for the newest ``last.ckpt`` of the runs of a name.

    Args:
        runs: the folder that holds the runs, ``<output_root>/<name>``.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        if not Path(ckpt_path).is_file():
            raise ConfigError(f"ckpt_path={ckpt_path}: no such file; give a checkpoint, or `last`")
        return ckpt_path
    found = sorted(runs.glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"ckpt_path=last: no run below {runs} has a last.ckpt; leave ckpt_path out")
    return str(found[-1])
