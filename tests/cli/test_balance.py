"""A run that is measured and balanced, repeated, resumed, and what it leaves behind."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from defeat.config import compose_config
from defeat.errors import ConfigError
from defeat.run.train import train
from tests.helpers.console import Run, execute, only
from tests.helpers.narrow import IN_A_PROCESS
from tests.helpers.tiny import tiny, tiny_teacher

WEIGHTS = ("object_weight", "background_weight")


def words(
    run_dir: Path, scenes: Path, teacher: Path, *more: str, measured: bool = True, pictured: bool = False
) -> list[str]:
    every = [*tiny_teacher(teacher), *more]
    return ["+experiment=scenes", *tiny(run_dir, scenes, *every, measured=measured, pictured=pictured)]


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return content["state_dict"]  # type: ignore[no-any-return]


def equal(a: Path, b: Path) -> bool:
    first, second = final_weights(a), final_weights(b)
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def loss_weights(config: DictConfig | dict[str, Any]) -> dict[str, float]:
    terms = config["distiller"]["terms"]
    return {f"{name}.{key}": terms[name][key] for name in ("neck", "head", "backbone") for key in WEIGHTS}


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher: Path) -> Path:
    """Run folder of a balanced run of two steps."""
    run_dir = tmp_path_factory.mktemp("balanced")
    asked = ["distiller.balance=gradient", "distiller.share=0.25", "distiller.shares={head_object: 1.5}"]
    train(compose_config("train", words(run_dir, scenes, teacher, *asked)))
    return run_dir


def test_a_run_ends_the_same_whether_it_was_measured_and_drawn_or_not(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    class Watch(Callback):
        """Keeps the random state that the measurement leaves behind."""

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            states.append(torch.get_rng_state())

    states: list[torch.Tensor] = []
    for name, measured in (("with", True), ("without", False)):
        # Proposals are drawn at random, and a step follows the first validation.
        more = ["distiller.terms.head.proposals=teacher", "trainer.max_steps=3"]
        of = words(tmp_path / name, scenes, teacher, *more, measured=measured, pictured=measured)
        train(compose_config("train", of), [Watch()])
        assert (tmp_path / name / "gradients.md").is_file() == measured
    assert torch.equal(*states)
    assert equal(tmp_path / "with", tmp_path / "without")


def test_the_weights_found_are_the_runs_own_from_then_on(balanced: Path) -> None:
    config = OmegaConf.load(balanced / "config.yaml")
    assert isinstance(config, DictConfig)
    found = loss_weights(config)
    assert config.distiller.balance == "balanced"
    assert sorted(config.distiller.balanced) == sorted(f"distiller.terms.{key}" for key in found)
    assert (config.distiller.share, dict(config.distiller.shares)) == (0.25, {"head_object": 1.5})
    assert found["neck.object_weight"] != 4.0
    content = torch.load(balanced / "checkpoints" / "last.ckpt", weights_only=True)["defeat"]["config"]
    assert loss_weights(content) == found
    assert content["distiller"]["balance"] == "balanced"
    assert type(content["distiller"]) is dict


def test_the_report_says_what_was_asked_for_and_what_came_of_it(balanced: Path) -> None:
    text = (balanced / "gradients.md").read_text()
    assert text.startswith("Losses on 8 images (2 batches), adapters fitted for 5 steps, ")
    rows = {line.split(" | ")[0][2:]: line for line in text.split("**Weights, balanced**")[1].splitlines()}
    found = loss_weights(OmegaConf.load(balanced / "config.yaml"))  # type: ignore[arg-type]
    assert re.fullmatch(
        rf"\| head_object \| \S+ \| 1.5 \| 2 \| {found['head.object_weight']:g} \|", rows["head_object"]
    )
    assert re.fullmatch(
        rf"\| neck_background \| \S+ \| 0.25 \| 16 \| {found['neck.background_weight']:g} \|",
        rows["neck_background"],
    )
    with (balanced / "gradients.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["kind"] for line in lines} == {"value", "gradient", "share"}


def test_loggers_have_the_shares_that_the_run_begins_with(balanced: Path) -> None:
    board = EventAccumulator(str(balanced / "tensorboard"))
    board.Reload()
    assert "gradients" in board.Tags()["images"]
    assert "run/5 gradients/text_summary" in board.Tags()["tensors"]
    with (balanced / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("neck_object", "neck_background", "head_object", "backbone_background"):
        share = 1.5 if name == "head_object" else 0.25  # what the run asked for
        (event,) = board.Scalars(f"gradient_share/{name}")
        assert (event.step, event.value) == (0, pytest.approx(share, rel=1e-3))
        (cell,) = (row[f"gradient_share/{name}"] for row in rows if row[f"gradient_share/{name}"])
        assert float(cell) == pytest.approx(share, rel=1e-3)
    assert [int(row["step"]) for row in rows if row["distill/neck_object"]] == [0, 1]


def test_the_words_printed_repeat_the_run(
    balanced: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    printed = (balanced / "gradients.md").read_text().splitlines()[-1]
    assert printed.startswith(
        "distiller.balance=gradient has set the weights. The same run with these fixed: "
    )
    fixed = printed.split("fixed: ")[1].split()
    assert len(fixed) == 6
    train(compose_config("train", words(tmp_path, scenes, teacher, *fixed, measured=False)))
    assert equal(balanced, tmp_path)


def test_the_runs_own_file_repeats_it(balanced: Path, tmp_path: Path, script: Run) -> None:
    again = ["--config-path", str(balanced), "--config-name", "config", f"run_dir={tmp_path}/again"]
    # Paths of loggers and checkpoints were resolved, so they are the old run's: move them too.
    text = (balanced / "config.yaml").read_text().replace(str(balanced), f"{tmp_path}/again")
    (tmp_path / "config.yaml").write_text(text)
    again[1] = str(tmp_path)
    ended = script("defeat-train", *again)
    assert ended.status == 0, ended.err
    assert "has set the weights" not in ended.out
    assert equal(balanced, tmp_path / "again")


def test_a_resumed_run_keeps_the_weights_of_its_checkpoint(
    balanced: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    last = balanced / "checkpoints" / "last.ckpt"
    more = ["distiller.balance=gradient", "distiller.share=7", f"ckpt_path={last}", "trainer.max_steps=3"]
    outcome = train(compose_config("train", words(tmp_path, scenes, teacher, *more)))
    assert outcome.steps == 3
    config = OmegaConf.load(tmp_path / "config.yaml")
    assert loss_weights(config) == loss_weights(OmegaConf.load(balanced / "config.yaml"))  # type: ignore[arg-type]
    assert config.distiller.balance == "balanced"
    # measured where it began
    for name in ("gradients.md", "gradients.csv"):
        assert (tmp_path / name).read_bytes() == (balanced / name).read_bytes()


def test_other_weights_on_a_resumed_run_are_mentioned(
    balanced: Path, scenes: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = [f"ckpt_path={balanced}/checkpoints/last.ckpt", "trainer.max_steps=3"]
    train(compose_config("train", words(tmp_path, scenes, teacher, *more, measured=False)))
    assert re.search(r"loss weights differ .*distiller\.terms\.head\.object_weight \S+ -> 2,", caplog.text)


def test_a_checkpoint_that_does_not_say_its_weights_is_refused(
    balanced: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    content = torch.load(balanced / "checkpoints" / "last.ckpt", weights_only=True)
    content["defeat"]["config"]["distiller"]["terms"]["head"] = None
    torch.save(content, tmp_path / "other.ckpt")
    more = ["distiller.balance=gradient", f"ckpt_path={tmp_path}/other.ckpt"]
    with pytest.raises(ConfigError, match=r"does not say what distiller\.terms\.head\.object_weight, "):
        train(compose_config("train", words(tmp_path, scenes, teacher, *more)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["callbacks.measure=null"],
            "distiller.balance=gradient needs the measurement that callbacks.measure=null leaves out",
        ),
        (["callbacks.measure.batches=0"], "measure: batches must be at least 1"),
        (["distiller.shares={neck: 2}"], "distiller.shares: there is no loss 'neck', only neck_object, "),
        (["distiller.balance=norm"], "distiller.balance must be null or gradient, got 'norm'"),
        (["student.model.trainable_layers=0"], "backbone_object has no gradient at the student's stages"),
    ],
)
def test_what_cannot_be_balanced_is_one_line(
    more: list[str], message: str, scenes: Path, teacher: Path, tmp_path: Path, script: Run
) -> None:
    asked = words(tmp_path / "run", scenes, teacher, "distiller.balance=gradient")
    ended = script("defeat-train", *asked, *more)
    assert message in ended.line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_request_and_the_report_are_shown(scenes: Path, teacher: Path, script: Run) -> None:
    asked = [w for w in words(Path(), scenes, teacher, "distiller.balance=gradient") if "run_dir=" not in w]
    ended = script("defeat-train", *asked)
    assert ended.status == 0, ended.err
    run_dir = only(Path("runs", "scenes"))
    assert OmegaConf.load(run_dir / ".hydra" / "config.yaml").distiller.balance == "gradient"
    assert OmegaConf.load(run_dir / "config.yaml").distiller.balance == "balanced"
    assert "Gradient at the student's neck, by stride" in ended.out
    assert f"gradients   {run_dir.resolve()}/gradients.md" in ended.out
    table = ended.out.split("Losses on ")[1].split("distiller.balance=gradient has set")[0]
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.slow
def test_two_processes_train_with_the_same_weights(teacher: Path, tmp_path: Path) -> None:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    several = [*ddp, IN_A_PROCESS, "distiller.balance=gradient"]
    asked = [w for w in words(Path(), tmp_path / "scenes", teacher, *several) if "run_dir=" not in w]
    trained = execute("defeat-train", *asked)
    assert trained.status == 0, trained.err
    assert trained.out.count("has set the weights") == 1, "one process measures"
    run_dir = only(Path("runs", "scenes"))
    fixed = (run_dir / "gradients.md").read_text().splitlines()[-1].split("fixed: ")[1].split()
    several.remove("distiller.balance=gradient")
    plain = [
        w
        for w in words(Path(), tmp_path / "scenes", teacher, *several, *fixed, measured=False)
        if "run_dir=" not in w
    ]
    again = execute("defeat-train", *plain, "name=again")
    assert again.status == 0, again.err
    assert equal(run_dir, only(Path("runs", "again")))
