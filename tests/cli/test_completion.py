"""What Tab offers: in bash itself, by the script that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from defeat.config import conf_dir
from tests.helpers.console import Run, process_environment

BASH = """
eval "$(defeat-train -sc install=bash)"
COMP_LINE="defeat-train +experiment=scenes $1" COMP_CWORD=2
COMP_POINT=${#COMP_LINE}
hydra_bash_completion
printf 'BREAKS%s\\n' "${COMP_WORDBREAKS//$'\\n'}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def names(group: str) -> set[str]:
    return {path.stem for path in (conf_dir() / group).glob("*.yaml")}


def test_bash_completes_a_detector() -> None:
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", "detector@teacher=fcos_"],
        env=process_environment(PATH=scripts),
        capture_output=True,
        text=True,
        check=True,
    )
    breaks, *offered = done.stdout.rpartition("BREAKS")[2].split("\n", 1)
    assert not {"@", "="} & {*breaks}  # else Tab would write the group twice
    fitting = {f"detector@teacher={name}" for name in names("detector") if name.startswith("fcos_")}
    assert {*"".join(offered).split()} == fitting


@pytest.mark.parametrize(
    ("script_name", "word", "expected"),
    [
        ("defeat-train", "det", {"detector=", "detector@student=", "detector@teacher="}),
        ("defeat-train", "logger=", {f"logger={name}" for name in names("logger")}),
        (
            "defeat-train",
            "distiller=defeat distiller.terms.neck.object_",
            {"distiller.terms.neck.object_weight="},
        ),
        (
            "defeat-eval",
            "detector@student=scenes_",
            {f"detector@student=scenes_{n}" for n in ("student", "teacher")},
        ),
    ],
)
def test_queries_offer_names_and_keys(
    script_name: str, word: str, expected: set[str], script: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"{script_name} {word}"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    ended = script(script_name, "-sc", "query=bash")
    assert ended.status == 0
    assert {*ended.out.split()} == expected
