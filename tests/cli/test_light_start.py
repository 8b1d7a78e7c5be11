"""What a command answers before its work begins is answered without the libraries that the work needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import defeat

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
module, heavy, command_lines = json.loads(sys.argv[1])
main = importlib.import_module(module).main
answers = []
for words in command_lines:
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
    "data": (["split"], ["splt", "x"], ["split", "x"], ["split", ".", "seeed=1"]),
    "demo": (["stepz=1"], ["+experiment=scenes"], ["steps=abc"]),
    "report": ([], ["runs", "--bseline", "x"], ["runs", "--seed", "-1"]),
}


@pytest.mark.parametrize("command", WRONG)
def test_looks_and_mistakes_import_nothing_heavy(command: str, tmp_path: Path) -> None:
    looks = LOOKS.get(command, HYDRA)
    asked = [f"defeat.cli.{command}", sorted(HEAVY), [*looks, *WRONG[command]]]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    answers = json.loads(done.stdout)
    assert [imported for _, _, imported in answers] == [[]] * len(answers)
    assert [status for status, _, _ in answers] == [0] * len(looks) + [1] * len(WRONG[command])
    text = [out for _, out, _ in answers]
    assert re.match(rf"defeat {re.escape(defeat.__version__)} \(torch \d\S*, torchvision ", text[1])
    assert len(text[0].splitlines()) < 120, "the keys that matter"
    assert max(map(len, text[0].splitlines())) <= 80
    assert all(re.fullmatch(r"error: .+\n", line) for line in text[len(looks) :]), text
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
