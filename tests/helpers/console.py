"""How console scripts end."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a console script ended."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that an error is."""
        assert self.status != 0
        assert "Traceback" not in self.err
        assert "Traceback" not in self.out
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")


Run = Callable[..., Ended]


def process_environment(**more: str) -> dict[str, str]:
    """The environment of another process, which finds the helpers of the tests too."""
    places = [str(CHECKOUT), more.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(filter(None, places))
    return {**os.environ, "OMP_NUM_THREADS": "1", **more, "PYTHONPATH": paths}


def execute(name: str, *words: str, **environment: str) -> Ended:
    """Start an executable that lies beside this interpreter, in an environment with some more variables."""
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *words],
        env=process_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def logged(run_dir: Path, column: str) -> dict[int, float]:
    """Values of a column of csv/metrics.csv by step."""
    with (run_dir / "csv" / "metrics.csv").open() as file:
        return {int(r["step"]): float(r[column]) for r in csv.DictReader(file) if r.get(column)}


def only(folder: Path) -> Path:
    """The one entry of a folder."""
    (path,) = folder.iterdir()
    return path
