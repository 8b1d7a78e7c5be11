"""Signals, full disks and kills: what is on the disk afterwards, and what the user is told."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from defeat.cli import train as command
from defeat.config import compose_config
from defeat.errors import ConfigError, StorageError
from defeat.io.atomic_write import write_text
from defeat.run.checkpoint_io import SafeCheckpointIO
from defeat.run.train import train
from defeat.training.stopping import SIGNALS, StoppedError, StopRequest, hand_on
from tests.helpers.console import process_environment
from tests.helpers.narrow import IN_A_PROCESS
from tests.helpers.tiny import tiny, tiny_config


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of generated scenes with more images than those of all tests."""
    return tmp_path_factory.mktemp("images")


class Send(pl.Callback):
    """Send this process a signal at some moment of the training."""

    def __init__(self, signum: int, hook: str, at: int) -> None:
        self.signum = signum
        self.at = at
        setattr(self, hook, self._send)

    def _send(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), self.signum)


def run(run_dir: Path, images: Path, *more: str, watch: tuple[pl.Callback, ...] = ()) -> int:
    words = tiny(run_dir, images, "data.train.images=20", *more, steps=5)
    return train(tiny_config("scenes_plain", words), watch).steps


@pytest.mark.parametrize(
    ("signum", "hook", "step"),
    [
        (signal.SIGTERM, "on_train_batch_end", 3),
        (signal.SIGHUP, "on_validation_batch_start", 4),
        (signal.SIGINT, "on_train_batch_start", 0),
    ],
)
def test_a_signal_saves_and_ends_and_the_run_goes_on_as_if_never_stopped(
    signum: signal.Signals, hook: str, step: int, images: Path, tmp_path: Path
) -> None:
    before = signal.getsignal(signum)
    if before == signal.SIG_IGN:
        pytest.skip(f"{signum.name} is ignored here, as nohup has it, and stays so")
    with pytest.raises(StoppedError, match=f"stopped by {signum.name} after step {step}; go on with"):
        run(tmp_path / "a", images, watch=(Send(signum, hook, step),))
    assert signal.getsignal(signum) is before
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == step
    assert content["place"]["validation_due"] == hook.startswith("on_validation")
    assert run(tmp_path / "b", images, f"ckpt_path={last}") == 5


def test_a_closed_terminal_stops_nothing_that_nohup_has_started() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        StopRequest().listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            assert signal.getsignal(number) not in (before[number], signal.SIG_DFL, signal.SIG_IGN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_nothing_is_written_to_a_closed_terminal() -> None:
    terminal, inside = os.openpty()
    request = StopRequest()
    request._terminals = [inside]
    os.close(terminal)
    with pytest.raises(OSError, match="Input/output"):
        os.write(inside, b"step 1")
    request._note(signal.SIGHUP, None)
    os.write(inside, b"step 2")
    os.close(inside)


def test_submitits_signal_is_handed_on_to_it_and_no_other(images: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    others = (signal.SIGUSR1, signal.SIGUSR2)
    before = {other: signal.signal(other, lambda number, _: heard.append(number)) for other in others}
    try:
        with pytest.raises(StoppedError, match="stopped by SIGUSR2 after step 3") as stopped:
            run(tmp_path / "a", images, watch=(Send(signal.SIGUSR2, "on_train_batch_end", 3),))
        assert heard == [], "while it trains the run has the signals"
        assert (tmp_path / "a" / "checkpoints" / "last.ckpt").is_file()
        hand_on(stopped.value.signum)
        hand_on(signal.SIGUSR1)
        assert heard == [signal.SIGUSR2]
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        hand_on(signal.SIGUSR2)  # would end this process
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_command_ends_as_by_the_signal_and_hands_on_submitits_alone(
    signum: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in SIGNALS}

    def stopped(*args: object, **more: object) -> None:
        raise StoppedError(signum, 7, "last.ckpt")

    monkeypatch.setattr("defeat.run.train.train", stopped)
    try:
        with pytest.raises(SystemExit) as end:
            command.run(compose_config("train", ["run_dir=x"]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == 128 + signum
    line = f"stopped by {signum.name} after step 7; go on with ckpt_path=last.ckpt"
    assert capsys.readouterr().err == f"{line}\n"
    assert heard == [signum] * (signum == signal.SIGUSR2)


def test_signals_between_accumulated_batches_wait_for_the_step(images: Path, tmp_path: Path) -> None:
    class SendAt(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            if batch_idx == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    more = ("trainer.accumulate_grad_batches=3", "data.batch_size=2", "trainer.val_check_interval=null")
    with pytest.raises(StoppedError, match="after step 2;"):
        run(tmp_path / "a", images, *more, watch=(SendAt(),))
    place = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)["place"]
    assert place["batches"] == 6


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, which is a full disk to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:  # before the test ends: pytest may write its report to a file
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 5_000, 100_000, 399_000, 401_000])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(size: int, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"step": 1}, path)
    message = r"cannot be written: .* allows; the one before it is still there"
    with pytest.raises(StorageError, match=message), files_of_at_most(size):
        SafeCheckpointIO().save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_on_a_full_disk_says_so_and_its_last_checkpoint_resumes(images: Path, tmp_path: Path) -> None:
    class Fill(pl.Callback):
        def on_train_batch_end(self, trainer, *args) -> None:  # type: ignore[no-untyped-def]
            if trainer.global_step == 3:
                disk.enter_context(files_of_at_most(100_000))

    with pytest.raises(StorageError, match=r"last.ckpt cannot be written"), ExitStack() as disk:
        run(tmp_path / "a", images, watch=(Fill(),))
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert run(tmp_path / "b", images, f"ckpt_path={last}") == 5


@pytest.mark.parametrize("moment", ["writing", "syncing", "renaming"])
def test_a_write_that_is_cut_off_leaves_the_old_file(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures.json"
    write_text(path, "old")

    def cut(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    if moment == "syncing":
        monkeypatch.setattr(os, "fsync", cut)
    if moment == "renaming":
        monkeypatch.setattr(Path, "replace", cut)
    if moment == "writing":
        monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    write_text(tmp_path / "a.txt", "x")
    assert events == ["sync", "rename", "sync"]  # the file, its name, the folder that lists the name


def test_of_two_runs_that_take_a_folder_at_once_one_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defeat.run.check.check_no_run", lambda folder: None)  # both have found it free
    run(tmp_path / "a", images, "~logger")
    before = (tmp_path / "a" / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="a holds a run already"):
        run(tmp_path / "a", images, "~logger", "seed=1")
    assert (tmp_path / "a" / "config.yaml").read_bytes() == before


def test_a_folder_that_has_a_run_is_refused_and_stays_as_it_is(images: Path, tmp_path: Path) -> None:
    run(tmp_path / "a", images, "~logger")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    for more in ([], [f"ckpt_path={tmp_path}/a/checkpoints/last.ckpt"]):
        with pytest.raises(ConfigError, match=r"a holds a run already, .* choose another folder"):
            run(tmp_path / "a", images, "~logger", *more)
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_two_processes_told_to_stop_stop_together_and_one_goes_on(images: Path, tmp_path: Path) -> None:
    both = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]
    words = tiny(tmp_path / "two", images, "data.train.images=20", *both, IN_A_PROCESS, steps=1000)
    process = subprocess.Popen(
        [Path(sys.executable).with_name("defeat-train"), "+experiment=scenes_plain", *words],
        env=process_environment(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    last = tmp_path / "two" / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.is_file():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.count("stopped by SIGTERM after step ") == 1
    assert "Traceback" not in said
    content = torch.load(last, weights_only=True)
    assert 0 < content["global_step"] < 1000
    more = [f"ckpt_path={last}", f"trainer.max_steps={content['global_step'] + 2}"]
    assert run(tmp_path / "one", images, "data.batch_size=4", *more) == content["global_step"] + 2
