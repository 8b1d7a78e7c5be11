"""Standard output whose reader ends, that takes ASCII alone, or that is closed: the command goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from defeat.cli.streams import prepare_streams
prepare_streams()
for _ in range(3):
    print("\\u884c\\u4eba F\\xfc\\xdfe \\ud800" + "x" * 100_000, flush=True)
    print("\\u884c\\u4eba", file=sys.stderr, flush=True)
with open("names.txt", "w") as file:
    file.write("\\u884c\\u4eba")
Path("done.txt").write_text("done")
"""


def run(folder: Path, shell: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program by a line of shell, in which "$@" stands for it."""
    command = ["bash", "-c", f"set -o pipefail; {shell}", "bash", sys.executable, "-c", PROGRAM]
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, env={**os.environ, **environment}, check=True
    )
    assert (folder / "done.txt").read_text() == "done"
    assert (folder / "names.txt").read_text(encoding="utf-8") == "行人"
    return ended


def test_a_reader_that_ends(tmp_path: Path) -> None:
    ended = run(tmp_path, '"$@" 2>err.txt | head -c 1')
    assert ended.stdout == "行".encode()[:1]
    assert (tmp_path / "err.txt").read_text(encoding="utf-8") == "行人\n" * 3
    run(tmp_path, '"$@" 2>&1 | head -c 1')


def test_streams_that_are_closed(tmp_path: Path) -> None:
    run(tmp_path, '"$@" >&- 2>&- <&-')


def test_ascii_alone(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in ({"PYTHONIOENCODING": "ascii"}, plain):
        ended = run(tmp_path, '"$@"', **environment)
        assert ended.stdout.startswith(rb"\u884c\u4eba F\xfc\xdfe \ud800")
