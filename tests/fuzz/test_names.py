"""Names of strangers that mean something to a library: they are names, everywhere, and touch nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from defeat.cli import run_dir  # noqa: F401 - registers the resolver that makes folders
from defeat.config import compose_config
from defeat.evaluation import evaluation_table
from defeat.predict.predict import predict
from defeat.report import make_report
from defeat.run.evaluate import evaluate
from defeat.run.train import train
from tests.helpers.distillation import distillation

pytestmark = pytest.mark.filterwarnings("ignore")  # matplotlib's remarks on glyphs that its font lacks

NAMES = (
    "${job_folder:made_by_a_name,x}", "${oc.env:DEFEAT_SECRET}", "${price}", "${", "???", "_target_", "_x",
    "None", "[red]", "$x_1^2$", "=cmd|' /c x'!A1", "a,b;\"c\"", "two\nlines", "\x1b[2J\x07", "| a |",
    "<script>x</script>", "/dataloader_idx_0", "../../up", "/etc", "%s{}{0}", "\ud800", "行人", "\u202eab",
    "n" * 300, "a\\b\\", "-", "#",
)  # fmt: skip
SECRET = "kept-to-itself"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_evaluation_report_and_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEFEAT_SECRET", SECRET)
    data, here = tmp_path / "data", tmp_path / "here"
    for folder in (data, here, tmp_path / "other"):
        folder.mkdir()
    monkeypatch.chdir(here)
    words = [
        word
        for word in distillation(data)
        if not word.startswith(("detector@teacher", "distiller", "teacher"))
    ]
    picture = "${job_folder:made_by_a_name,y} [red] $x$.jpg"
    (data / "a.jpg").rename(data / picture)
    content = json.loads((data / "a.json").read_text())
    content["images"][0]["file_name"] = picture
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    content["annotations"] = [{**content["annotations"][0], "id": i, "category_id": i} for i in (1, 2, 5, 9)]
    (data / "a.json").write_text(json.dumps(content))
    before = contents(data)
    short = [
        "trainer.max_steps=1",
        "trainer.accelerator=cpu",
        "data.batch_size=1",
        "student.model.min_size=32",
    ]
    run = train(
        compose_config(
            "train", [*words, *short, f"run_dir={tmp_path / 'run'}", "~callbacks.progress", "preflight=off"]
        )
    ).run_dir
    last = run / "checkpoints" / "last.ckpt"
    evaluated = evaluate(
        compose_config("eval", [f"checkpoint={last}", "run_dir=.", "trainer.accelerator=cpu"])
    )
    assert list(evaluated.evaluation.per_class) == list(NAMES)
    distilled = [*distillation(tmp_path / "other"), *words, *short, f"run_dir={tmp_path / 'run2'}"]
    again = [*distilled, f"teacher.weights={last}", "~callbacks.progress", "preflight=off"]
    train(compose_config("train", again))
    resumed = [*again, "trainer.max_steps=2", f"ckpt_path={tmp_path / 'run2' / 'checkpoints' / 'last.ckpt'}"]
    train(compose_config("train", [*resumed, f"run_dir={tmp_path / 'run3'}"]))
    found = predict(
        compose_config(
            "predict",
            [
                f"checkpoint={last}",
                f"source={data}",
                "score_threshold=0",
                f"run_dir={tmp_path / 'found'}",
                "device=cpu",
            ],
        )
    )
    assert not found.failed
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation_table(evaluated.evaluation))
    make_report([run], tmp_path / "report", resamples=5, console=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "${oc.env:DEFEAT_SECRET}" in shown
    for text in (
        shown,
        capfd.readouterr().err,
        *(p.read_text() for p in (tmp_path / "report").glob("*.[cm]*")),
    ):
        assert "\x1b[2J" not in text
    assert contents(data) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data",
        "found",
        "here",
        "other",
        "report",
        "run",
        "run2",
        "run3",
    ]
    assert not any(here.iterdir())
    assert not [path for path, text in contents(tmp_path).items() if SECRET.encode() in text]
