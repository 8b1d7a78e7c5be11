"""Memory format, fused optimiser, TF32: the same training up to rounding."""

from __future__ import annotations

import copy
import inspect
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn

from defeat.errors import ConfigError
from defeat.run.build import build_run
from defeat.run.hardware import keep_freed_memory, laid_like_parameters
from defeat.run.train import train
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher

FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What these settings change holds for the process."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


class Watch(Callback):
    """Keeps the losses of all steps, and whether the parameters of convolutions lie channels last."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.laid: dict[str, set[bool]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        for part in ("student", "distiller"):
            module = getattr(pl_module, part)
            if module is None:
                continue
            kernels = [p for p in module.parameters() if p.ndim == 4 and min(p.shape[1:3]) > 1]
            self.laid[part] = {p.is_contiguous(memory_format=torch.channels_last) for p in kernels}


def configured(run_dir: Path, scenes: Path, teacher: Path, *more: str, steps: int = 3) -> DictConfig:
    # Adam makes a whole step of a gradient that is rounding alone, and SGD does not.
    sgd = ["optim=sgd_1x", "optim.lr_schedule.warmup_steps=1"]
    words = tiny(run_dir, scenes, *tiny_teacher(teacher), "~logger", *sgd, *more, steps=steps)
    return tiny_config("scenes", words)


def plain_run(run_dir: Path, scenes: Path, *more: str, steps: int = 3) -> Watch:
    """A run that is not distilled."""
    watch = Watch()
    sgd = ["optim=sgd_1x", "optim.lr_schedule.warmup_steps=1"]
    words = tiny(run_dir, scenes, "~logger", *sgd, *more, steps=steps)
    train(tiny_config("scenes_plain", words), callbacks=[watch])
    return watch


def run(run_dir: Path, scenes: Path, teacher: Path, *more: str, steps: int = 3) -> Watch:
    watch = Watch()
    train(configured(run_dir, scenes, teacher, *more, steps=steps), callbacks=[watch])
    return watch


def saved(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def test_channels_last_is_laid_out_so_and_trains_alike(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", scenes, teacher)
    last = run(tmp_path / "last", scenes, teacher, "channels_last=true")
    assert plain.laid == {"student": {False}, "distiller": {False}}
    assert last.laid == {"student": {True}, "distiller": {True}}
    assert last.losses == pytest.approx(plain.losses, rel=1e-4)


@pytest.mark.parametrize(
    ("first", "fused"), [("true", "true"), pytest.param("false", "null", marks=pytest.mark.slow)]
)
def test_a_checkpoint_goes_on_in_the_other_memory_format(
    first: str, fused: str, scenes: Path, tmp_path: Path
) -> None:
    other = {"true": "false", "false": "true"}[first]
    common = [f"optim.optimizer.fused={fused}"]
    plain_run(tmp_path / "first", scenes, f"channels_last={first}", *common, steps=2)
    resumed = {}
    for name, value in (("same", first), ("other", other)):
        more = [f"channels_last={value}", f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt", *common]
        resumed[name] = plain_run(tmp_path / name, scenes, *more, steps=4)
    assert len(resumed["same"].losses) == 2
    # The first loss is that of the weights as they were loaded, the second that of a step of the optimiser.
    assert resumed["other"].losses == pytest.approx(resumed["same"].losses, rel=1e-4)
    assert resumed["other"].laid["student"] == {other == "true"}


def test_weights_are_loaded_to_the_bit_whatever_their_memory_format(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    run(tmp_path / "first", scenes, teacher, "channels_last=true", steps=2)
    path = f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt"
    still = ["optim.optimizer.lr=0", "optim.optimizer.weight_decay=0", "force_resume=true"]
    run(tmp_path / "other", scenes, teacher, path, *still, steps=3)
    before, after = (saved(tmp_path / name)["state_dict"] for name in ("first", "other"))
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    kernels = [name for name in learned if before[name].ndim == 4 and min(before[name].shape[1:3]) > 1]
    assert kernels
    assert all(before[name].is_contiguous(memory_format=torch.channels_last) for name in kernels)
    assert all(after[name].is_contiguous() for name in kernels)
    for name in learned:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(("saved_in", "loaded_into"), [FORMATS, FORMATS[::-1]])
def test_a_loaded_optimiser_steps_as_the_one_that_was_saved(
    optimizer: Any, saved_in: torch.memory_format, loaded_into: torch.memory_format
) -> None:
    settings = {"lr": 0.1, "fused": True} | ({"momentum": 0.9} if optimizer is torch.optim.SGD else {})
    factory = laid_like_parameters(lambda parameters: optimizer(parameters, **settings))
    weight, gradient = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)

    def stepped(state: dict[str, Any] | None, memory_format: torch.memory_format) -> tuple[Tensor, Any]:
        kernel = nn.Parameter(weight.clone(memory_format=memory_format))
        one = factory(iter([kernel]))
        if state is not None:
            one.load_state_dict(copy.deepcopy(state))
        kernel.grad = gradient.clone(memory_format=memory_format)
        one.step()
        return kernel.detach(), one.state_dict()

    _, state = stepped(None, saved_in)
    torch.testing.assert_close(stepped(state, loaded_into)[0], stepped(state, saved_in)[0])


@pytest.mark.parametrize("optim", ["adamw", pytest.param("sgd_1x", marks=pytest.mark.slow)])
def test_a_fused_optimiser_trains_alike(optim: str, scenes: Path, tmp_path: Path) -> None:
    more = [f"optim={optim}", "optim.lr_schedule.warmup_steps=1"]
    plain = plain_run(tmp_path / "plain", scenes, *more)
    fused = plain_run(tmp_path / "fused", scenes, *more, "optim.optimizer.fused=true")
    groups = [saved(tmp_path / name)["optimizer_states"][0]["param_groups"][0] for name in ("plain", "fused")]
    assert [group["fused"] for group in groups] == [None, True]
    assert len(set(plain.losses)) == 3
    assert fused.losses == pytest.approx(plain.losses, rel=1e-4)


def test_another_choice_of_fused_is_resumed_by_force_alone(scenes: Path, tmp_path: Path) -> None:
    plain_run(tmp_path / "first", scenes, steps=2)
    more = [f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt", "optim.optimizer.fused=true"]
    with pytest.raises(
        ConfigError, match=r"another training: optim.optimizer.fused None -> True. .*force_res"
    ):
        plain_run(tmp_path / "refused", scenes, *more, steps=4)
    forced = plain_run(tmp_path / "forced", scenes, *more, "force_resume=true", steps=4)
    assert saved(tmp_path / "forced")["optimizer_states"][0]["param_groups"][0]["fused"] is True
    same = plain_run(tmp_path / "same", scenes, more[0], steps=4)
    assert forced.losses == pytest.approx(same.losses, rel=1e-4)


@pytest.mark.parametrize("value", [True, False])
def test_tf32_is_for_convolutions_and_products_on_cuda_alone(
    value: bool, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    cpu = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.mkldnn.conv.fp32_precision
    build_run(configured(tmp_path, scenes, teacher, f"tf32={value}"))
    assert torch.backends.cuda.matmul.allow_tf32 is value
    assert torch.backends.cudnn.allow_tf32 is value
    # What Lightning looks at before it advises the user to decide.
    assert torch.get_float32_matmul_precision() == ("high" if value else "highest")
    after = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.mkldnn.conv.fp32_precision
    assert {*cpu, *after} <= {"none", "ieee"}


PAGES = """
def fetched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**27
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def fewest():
    fetched()
    return min(fetched() for _ in range(3))
print(fewest(), keep_freed_memory(), fewest())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept() -> None:
    """Counted in pages that the system hands out for 128 MiB after others were freed, in a new process."""
    program = f"import ctypes, resource\n{inspect.getsource(keep_freed_memory)}{PAGES}"  # torch takes seconds
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    before, is_set, after = done.stdout.split()
    assert is_set == "True"
    assert int(before) > 2**27 // 2**21  # of the largest pages that systems have
    assert int(after) < 10


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_run_keeps_freed_memory_where_it_is_told_to(
    value: str, scenes: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr("defeat.run.build.keep_freed_memory", lambda: calls.append(None))
    build_run(configured(tmp_path, scenes, teacher, f"keep_freed_memory={value}"))
    assert len(calls) == (value == "true")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["tf32=maybe"], "tf32 must be true or false, got 'maybe'"),
        (["channels_last=1"], "channels_last must be true or false, got 1"),
        (["keep_freed_memory=null"], "keep_freed_memory must be true or false, got None"),
        (
            ["optim.optimizer.fused=true", "trainer.gradient_clip_val=1", "trainer.precision=16-mixed"],
            "gradient_clip_val=1 cannot clip .*fused=true with .*precision=16-mixed.* set .*fused=false",
        ),
        (
            ["optim.optimizer.fused=true", "trainer.gradient_clip_val=1", "trainer.precision=bf16-mixed"],
            "gradient_clip_val=1 cannot clip .*fused=true with .*precision=bf16-mixed.* set .*fused=false",
        ),
    ],
)
def test_what_cannot_be_set_is_refused(
    more: list[str], message: str, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", scenes, teacher, *more)
    assert not (tmp_path / "run").exists()
