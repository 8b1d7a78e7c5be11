"""The script that makes the screenshots of docs/dashboards.md, where there is no browser."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[1] / "tools" / "tensorboard_screenshots.py"


def test_a_missing_browser_is_told_before_anything_is_started(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, TOOL, tmp_path, tmp_path / "pictures"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("no browser: install one of chromium, ")
    assert "Traceback" not in ended.stderr
