"""What a command answers before its work begins is answered without the libraries that the work needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

import defeat
from tests.helpers.console import process_environment

HEAVY = {
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "matplotlib",
    "pycocotools",
    "faster_coco_eval",
    "scipy",
    "tensorboard",
    "optuna",
    "numpy",
}

PROGRAM = """
import contextlib, importlib, io, json, sys
from tests.helpers.quick_hydra import quick_hydra
heavy, command_lines = json.loads(sys.argv[1])
answers = []
with quick_hydra():
    for command, words in command_lines:
        main = importlib.import_module(f"defeat.cli.{command}").main
        sys.argv = ["command", *words]
        out, status = io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                main()
            except SystemExit as end:
                status = end.code or 0
        answers.append([status, out.getvalue(), sorted(set(heavy) & set(sys.modules))])
print(json.dumps(answers))
"""

LOOK = (["--help"], ["--version"])
HYDRA = (*LOOK, ["--help-all"], ["--cfg", "job"])
LOOKS = {"report": LOOK, "data": (*LOOK, ["split", "--help"])}
WRONG = {
    "train": (
        ["optim.optmizer.lr=1"],
        ["--experiment", "x"],
        ["student=frcnn_r50", "data.root=x"],
        ["+experiment=scenes_plan"],
        [],
        ["data.root=x", "seed=abc"],
    ),
    "evaluate": (["chekpoint=x"], ["data=cocoo"], ["data=coco"], ["save_results=1"]),
    "predict": (["chekpoint=x"], ["checkpoint=x"], ["checkpoint=x", "source=y", "batch_size=many"]),
    "export": (["chekpoint=x"], ["checkpoint=x", "format=x"], ["checkpoint=x", "size=[1,1]"]),
    "importer": (["sorce=x"], ["source=x"], ["source=x", "output=x.pth"], ["source=x", "output=x", "kind=y"]),
    "data": (["split"], ["splt", "x"], ["split", "x"], ["split", ".", "seeed=1"]),
    "demo": (["stepz=1"], ["+experiment=scenes"], ["steps=abc"]),
    "report": ([], ["runs", "--bseline", "x"], ["runs", "--seed", "-1"]),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each command answers, all of them in one process: status, output, and what is imported by then."""
    folder = tmp_path_factory.mktemp("looks")
    lines = [(name, words) for name in WRONG for words in (*LOOKS.get(name, HYDRA), *WRONG[name])]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([sorted(HEAVY), lines])],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=process_environment(),
    )
    assert not any(path.is_file() for path in folder.rglob("*"))
    found: dict[str, list[Any]] = {}
    for (name, _), answer in zip(lines, json.loads(done.stdout), strict=True):
        found.setdefault(name, []).append(answer)
    return found


@pytest.mark.parametrize("command", WRONG)
def test_looks_and_mistakes_import_nothing_heavy(command: str, answers: dict[str, list[Any]]) -> None:
    looks = LOOKS.get(command, HYDRA)
    status, text, imported = zip(*answers[command], strict=True)
    assert list(imported) == [[]] * len(imported)
    assert list(status) == [0] * len(looks) + [1] * len(WRONG[command])
    assert re.match(rf"defeat {re.escape(defeat.__version__)} \(torch \d\S*, torchvision ", text[1])
    assert len(text[0].splitlines()) < 120, "the keys that matter"
    assert max(map(len, text[0].splitlines())) <= 80
    assert all(re.fullmatch(r"error: .+\n", line) for line in text[len(looks) :]), text
