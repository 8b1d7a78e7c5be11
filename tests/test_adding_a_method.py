"""docs/adding-a-method.md: what it quotes is in the repository, and what it shows runs as it is written."""

from __future__ import annotations

import csv
import importlib
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from defeat.cli import train as console
from defeat.distill import AdaptedMaps, Distiller, WholeMapTerm
from tests.helpers.tiny import tiny, tiny_teacher

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENT = (CHECKOUT / "docs" / "adding-a-method.md").read_text()
BLOCK = re.compile(r"(?:^`(?P<path>[^`\n]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block, and the file it is said to be in."""

    path: str | None
    language: str
    text: str


BLOCKS = [Block(**found.groupdict()) for found in BLOCK.finditer(DOCUMENT)]
NAMED = [(block.path, block.text) for block in BLOCKS if block.path]
QUOTED = [(path, text) for path, text in NAMED if (CHECKOUT / path).is_file()]
WRITTEN = {path: text for path, text in NAMED if not (CHECKOUT / path).is_file()}
COMMANDS = [line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()]


def command(end: str) -> str:
    """The command that ends like this."""
    (line,) = (c for c in COMMANDS if c.endswith(end))
    return line


def test_every_block_is_a_file_or_a_command() -> None:
    assert all(block.path or block.language == "sh" for block in BLOCKS)
    assert sorted(WRITTEN) == ["conf/distiller/centre.yaml", "my_masks.py", "test_my_masks.py"]
    assert len(QUOTED) == 7
    assert len(COMMANDS) == 4


@pytest.mark.parametrize(("path", "text"), QUOTED)
def test_quotations_are_what_the_repository_has(path: str, text: str) -> None:
    assert f"\n{text}" in f"\n{(CHECKOUT / path).read_text()}"


def test_a_configuration_that_is_shown_from_its_first_line_is_shown_whole() -> None:
    assert dict(QUOTED)["conf/distiller/pkd.yaml"] == (CHECKOUT / "conf/distiller/pkd.yaml").read_text()


def test_names_and_links_in_the_text_exist() -> None:
    import defeat.distill

    text = BLOCK.sub("", DOCUMENT)
    for link in re.findall(r"\]\((?!https:)([^)]+)\)", text):
        assert (CHECKOUT / "docs" / link.partition("#")[0]).is_file(), link
    for path in re.findall(r"`((?:src|tests|conf)/[\w./-]+)`", text):
        assert (CHECKOUT / path).exists(), path
    rows = dict(re.findall(r"^\| (\w+) \|.*\| ([^|]+) \|$", text, re.M))
    for part in ("mask", "loss", "adapter", "term"):
        for name in re.findall(r"`(\w+)`", rows[part]):
            assert hasattr(defeat.distill, name), name
    for name in re.findall(r"`(\w+)`", rows["distiller"]):
        assert (CHECKOUT / "conf" / "distiller" / f"{name}.yaml").is_file(), name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with the files of the document, where commands are typed."""
    for path, text in WRITTEN.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path
    # Hydra configures logging for the process: put it back.
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for path in WRITTEN:
        sys.modules.pop(Path(path).stem, None)


Run = Callable[..., dict[str, float]]
Spy = list[list[tuple[Tensor, Tensor]]]


@pytest.fixture
def run(
    folder: Path,
    scenes: Path,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Type a command, made tiny, and read what it logged at its first step."""

    def run(line: str, *more: str, name: str = "run") -> dict[str, float]:
        script, *words = shlex.split(line)
        if script == "PYTHONPATH=.":
            sys.path.insert(0, str(folder))
            script, *words = words
        assert script == "defeat-train"
        size = tiny(folder / name, scenes, *tiny_teacher(teacher), "trainer.limit_val_batches=0", steps=1)
        monkeypatch.setattr("sys.argv", [script, *words, *size, "trainer.val_check_interval=1", *more])
        try:
            console.main()
        finally:
            GlobalHydra.instance().clear()
        capfd.readouterr()
        return first_step(folder / name)

    return run


def first_step(run_dir: Path) -> dict[str, float]:
    """What was logged together with the loss."""
    with (run_dir / "csv" / "metrics.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["train/loss"])
    return {name: float(value) for name, value in row.items() if value}


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Adapted student maps and teacher maps of every step to come."""
    steps: Spy = []
    forward = AdaptedMaps.forward

    def spy(self: AdaptedMaps, pair: Any) -> Iterator[tuple[Tensor, Tensor]]:
        pairs = list(forward(self, pair))
        steps.append([(s.detach().clone(), t.clone()) for s, t in pairs])
        return iter(pairs)

    monkeypatch.setattr(AdaptedMaps, "forward", spy)
    return steps


def test_the_mask_that_is_shown_is_the_one_that_trains(run: Run, folder: Path) -> None:
    line = command("distiller=centre")
    shown = run(line, name="shown")
    assert OmegaConf.load(folder / "shown/config.yaml").distiller.terms.neck.mask.share == 0.5
    # Of whole boxes it is the package's own mask; of their middles it is not, and nothing else changes.
    whole = run(line, "distiller.terms.neck.mask.share=1.0", name="whole")
    neck = run(command("distiller=pkd").replace("distiller=pkd", "distiller=neck"), name="neck")
    assert set(shown) == set(whole) == set(neck)
    for name in ("distill/neck_object", "distill/neck_background"):
        assert whole[name] == pytest.approx(neck[name], rel=1e-6)
        assert shown[name] != pytest.approx(neck[name], rel=1e-4)
    assert shown["train/loss_detection"] == pytest.approx(neck["train/loss_detection"], rel=1e-6)
    assert shown["train/loss"] == pytest.approx(
        sum(shown[n] for n in ("train/loss_detection", "distill/neck_object", "distill/neck_background")),
        rel=1e-5,
    )


def test_the_mask_passes_its_own_test(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module("test_my_masks")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()
    monkeypatch.setattr(module, "centre_mask", module.centre_mask.__globals__["object_mask"])
    with pytest.raises(AssertionError):
        tests[0]()


def pearson(s: Tensor, t: Tensor) -> float:
    a, b = (x.double().transpose(0, 1).flatten(1).numpy() for x in (s, t))
    return float(np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


def divergence(s: Tensor, t: Tensor) -> float:
    p, q = (x.double().flatten(2).softmax(2) for x in (s, t))
    return float((q * (q / p).log()).sum(2).mean())


@pytest.mark.parametrize(
    ("end", "name", "weight", "loss"),
    [
        ("distiller=pkd", "pkd", 24.0, pearson),
        ("distiller=cwd", "cwd", 20.0, divergence),
        ("l1_loss", "pkd", 24.0, lambda s, t: float(F.l1_loss(s, t))),
    ],
)
def test_the_whole_map_losses_that_are_shown_are_those_that_train(
    end: str, name: str, weight: float, loss: Callable[[Tensor, Tensor], float], run: Run, maps: Spy
) -> None:
    logged = run(command(end))
    assert [n for n in logged if n.startswith(f"distill/{name}")] == [f"distill/{name}"]
    levels = maps[0]
    assert len(levels) == 4
    expected = weight * np.mean([loss(s, t) for s, t in levels])
    assert logged[f"distill/{name}"] == pytest.approx(expected, rel=1e-4)
    total = logged["train/loss_detection"] + logged[f"distill/{name}"]
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)


def test_a_distiller_without_parameters_trains(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Distiller] = []
    setup = Distiller.__init__
    monkeypatch.setattr(
        Distiller, "__init__", lambda self, *a, **k: (setup(self, *a, **k), built.append(self))[0]
    )
    logged = run(command("distiller=pkd"), "student.model.fpn_channels=16")
    (distiller,) = built
    assert isinstance(distiller.terms["pkd"], WholeMapTerm)
    assert list(distiller.parameters()) == []
    assert logged["distill/pkd"] > 0
    content = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in content["state_dict"]} == {"student"}
