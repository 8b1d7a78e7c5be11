from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from defeat.config import compose_config
from defeat.errors import ConfigError, WeightsError
from defeat.run.evaluate import evaluate
from defeat.run.train import train
from defeat.training.callbacks import KeepPredictions
from tests.helpers.tiny import tiny, tiny_config, tiny_teacher


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher: Path) -> Path:
    """Run folder of a distilled run of four steps."""
    run_dir = tmp_path_factory.mktemp("distilled")
    overrides = tiny(run_dir, scenes, *tiny_teacher(teacher), steps=4)
    outcome = train(compose_config("train", ["+experiment=scenes", *overrides]))
    assert outcome.steps == 4
    assert outcome.evaluation is not None
    return run_dir


def rows(run_dir: Path, column: str) -> dict[int, float]:
    with (run_dir / "csv" / "metrics.csv").open() as file:
        return {int(r["step"]): float(r[column]) for r in csv.DictReader(file) if r.get(column)}


def test_every_loss_term_rate_and_figure_is_logged(distilled: Path) -> None:
    for name in (
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
        "loss",
        "loss_detection",
        "images_per_s",
    ):
        assert list(rows(distilled, f"train/{name}")) == [0, 1, 2, 3], name
    for term in ("neck", "head", "backbone"):
        for half in ("object", "background"):
            assert list(rows(distilled, f"distill/{term}_{half}")) == [0, 1, 2, 3], (term, half)
    assert len(rows(distilled, "lr-AdamW")) == 4
    for name in ("AP", "AP50", "AP75", "AR100", "voc_AP50_11point"):
        assert list(rows(distilled, f"val/{name}")) in ([1, 3], [])  # empty where a class has no truth
    assert list(rows(distilled, "val_AP_class/disc")) in ([1, 3], [])
    assert list(rows(distilled, "val/AP")) == [1, 3]


def test_the_parts_add_up_to_the_loss(distilled: Path) -> None:
    total = rows(distilled, "train/loss")
    detection = rows(distilled, "train/loss_detection")
    for step in total:
        terms = sum(
            rows(distilled, f"distill/{term}_{half}")[step]
            for term in ("neck", "head", "backbone")
            for half in ("object", "background")
        )
        assert total[step] == pytest.approx(detection[step] + terms, rel=1e-5)
        own = sum(
            rows(distilled, f"train/loss_{name}")[step]
            for name in ("classifier", "box_reg", "objectness", "rpn_box_reg")
        )
        assert detection[step] == pytest.approx(own, rel=1e-5)


def test_the_levels_add_up_to_the_terms(distilled: Path) -> None:
    strides = {"neck": (4, 8, 16, 32), "backbone": (8, 16)}
    for term, half in itertools.product(strides, ("object", "background")):
        levels = [rows(distilled, f"distill_level/{term}_{half}_stride_{s}") for s in strides[term]]
        for step, value in rows(distilled, f"distill/{term}_{half}").items():
            assert sum(level[step] for level in levels) == pytest.approx(value, rel=1e-5)


def test_the_run_folder_says_how_it_was_made(distilled: Path) -> None:
    config = OmegaConf.load(distilled / "config.yaml")
    assert config.name == "scenes"
    assert config.distiller.terms.neck.object_weight == 4.0
    packages = json.loads((distilled / "environment.json").read_text())["packages"]
    assert packages["torch"] == torch.__version__.split("+")[0]
    data = json.loads((distilled / "data.json").read_text())
    assert data["splits"]["train"]["images"] == 8
    assert len(data["splits"]["val"]["sha256"]) == 64
    assert data["classes"][0] == "disc"
    assert list((distilled / "tensorboard").glob("events.out.tfevents.*"))


def test_a_checkpoint_holds_no_teacher_and_only_plain_containers(distilled: Path, teacher: Path) -> None:
    content = torch.load(distilled / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {key.split(".")[0] for key in content["state_dict"]}
    assert parts == {"student", "distiller"}
    own = content["defeat"]
    assert own["teacher"]["source"] == str(teacher)
    assert len(own["teacher"]["sha256"]) == 64
    assert own["classes"][:2] == ["disc", "square"]
    assert own["config"]["student"]["model"]["backbone"] == "narrow"
    assert {"best.ckpt", "last.ckpt"} == {p.name for p in (distilled / "checkpoints").iterdir()}


def test_adapters_are_optimised_and_kept_for_resume(distilled: Path) -> None:
    content = torch.load(distilled / "checkpoints" / "last.ckpt", weights_only=True)
    adapters = [k for k in content["state_dict"] if "adapters" in k]
    # neck levels of strides 4, 8, 16, 32 and stages of strides 8, 16; weight and bias each
    assert len(adapters) == 2 * (4 + 2)
    optimised = content["optimizer_states"][0]["param_groups"][0]["params"]
    config = OmegaConf.create(own := content["defeat"]["config"])
    assert own
    student = instantiate(config.student, classes=content["defeat"]["classes"]).model
    assert len(optimised) == len([p for p in student.parameters() if p.requires_grad]) + len(adapters)


def test_evaluating_a_checkpoint_gives_what_training_logged(distilled: Path, tmp_path: Path) -> None:
    last = distilled / "checkpoints" / "last.ckpt"
    config = compose_config("eval", [f"checkpoint={last}", f"run_dir={tmp_path}", "trainer=cpu"])
    found = evaluate(config)
    for name, value in found.evaluation.coco.items():
        logged = rows(distilled, f"val/{name}")
        if logged:
            assert value == pytest.approx(logged[3], abs=1e-6, nan_ok=True), name
    assert len(found.predictions) == 4


@pytest.mark.parametrize("part", ["student", "data"])
def test_what_a_checkpoint_wants_called_is_not(part: str, distilled: Path, tmp_path: Path) -> None:
    content = torch.load(distilled / "checkpoints" / "last.ckpt", weights_only=True)
    content["defeat"]["config"][part] = {"_target_": "os.system", "command": f"touch {tmp_path}/called"}
    torch.save(content, tmp_path / "stranger.ckpt")
    words = [f"checkpoint={tmp_path}/stranger.ckpt", f"run_dir={tmp_path}", "trainer=cpu"]
    with pytest.raises(WeightsError, match=rf"stranger.ckpt: .* wants {part} to be built by 'os.system'"):
        evaluate(compose_config("eval", words))
    assert not (tmp_path / "called").exists()


def test_the_last_checkpoint_is_of_the_last_step_though_ap_did_not_rise(distilled: Path) -> None:
    assert torch.load(distilled / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_steps_after_the_last_validation_are_saved_too(scenes: Path, tmp_path: Path) -> None:
    overrides = tiny(tmp_path, scenes, "~logger", steps=3)
    train(compose_config("train", ["+experiment=scenes_plain", *overrides]))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_evaluation_takes_the_precision_of_the_training(scenes: Path, tmp_path: Path) -> None:
    more = ("trainer.precision=bf16-mixed", "student.model.box_score_thresh=0.0", "~logger")
    keeper = KeepPredictions()
    train(tiny_config("scenes_plain", tiny(tmp_path, scenes, *more)), [keeper])
    words = [f"checkpoint={tmp_path}/checkpoints/last.ckpt", f"run_dir={tmp_path}", "trainer=cpu"]
    same, other = (
        evaluate(compose_config("eval", [*words, *precision])).predictions
        for precision in ([], ["trainer.precision=32-true"])
    )
    assert all(len(p["scores"]) for p in keeper.predictions.values())
    assert all(torch.equal(same[i]["scores"], p["scores"]) for i, p in keeper.predictions.items())
    assert not all(torch.equal(other[i]["scores"], p["scores"]) for i, p in keeper.predictions.items())


def test_a_resumed_run_knows_the_best_so_far(
    distilled: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    last = torch.load(distilled / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (v for k, v in last["callbacks"].items() if k.startswith("BestCheckpoint"))
    state["best_model_score"] = torch.tensor(0.9)
    state["best_k_models"] = {state["best_model_path"]: torch.tensor(0.9)}
    state["kth_value"] = torch.tensor(0.9)
    torch.save(last, tmp_path / "last.ckpt")
    words = tiny(tmp_path / "on", scenes, *tiny_teacher(teacher), f"ckpt_path={tmp_path}/last.ckpt", steps=6)
    outcome = train(tiny_config("scenes", words))
    assert outcome.best_score == pytest.approx(0.9)
    # the run that was resumed keeps its file; this one has a copy
    assert outcome.best == tmp_path / "on" / "checkpoints" / "best.ckpt"
    assert outcome.best.read_bytes() == (distilled / "checkpoints" / "best.ckpt").read_bytes()


class SeeBatches(pl.Callback):
    """Keep what the training sees."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.images += batch.images


def test_a_plain_run_and_a_distilled_one_begin_alike_and_see_the_same_batches(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    # On the teacher's proposals the distilled run draws more random numbers than its baseline.
    seen = []
    for name, experiment, more in (
        ("plain", "scenes_plain", []),
        ("lesson", "scenes", [*tiny_teacher(teacher), "distiller.terms.head.proposals=teacher"]),
    ):
        watch = SeeBatches()
        words = tiny(tmp_path / name, scenes, "~logger.tensorboard", *more, steps=3)
        train(tiny_config(experiment, words), [watch])
        seen.append(watch.images)
    assert len(seen[0]) == len(seen[1]) == 12
    assert all(map(torch.equal, *seen))
    first, second = (rows(tmp_path / name, "train/loss_detection")[0] for name in ("plain", "lesson"))
    assert first == second


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            ["detector@teacher=scenes_teacher", "teacher.weights=null"],
            ConfigError,
            "teacher.weights is not set",
        ),
        (["teacher=null"], ConfigError, "a distiller is chosen but no teacher"),
        (["~distiller"], ConfigError, "a teacher is chosen but no distiller"),
        (["teacher.weights=gone.ckpt"], WeightsError, "'gone.ckpt': no such file"),
        (["ckpt_path=gone.ckpt"], ConfigError, "ckpt_path=gone.ckpt: no such file"),
        (["ckpt_path=last", "output_root=nowhere"], ConfigError, "has no last.ckpt"),
        (["teacher.model.backbone=resnet18"], WeightsError, "another model"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    more: list[str], error: type[Exception], message: str, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    overrides = tiny(tmp_path, scenes, *tiny_teacher(teacher), *more)
    with pytest.raises(error, match=message):
        train(compose_config("train", ["+experiment=scenes", *overrides]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["+trainer.overfit_batches=2"], "overfit_batches .* replaces the order of the images"),
        (["trainer.accumulate_grad_batches=4"], "val_check_interval=2 is no multiple of .*=4"),
        (["+callbacks.checkpoint.every_n_train_steps=3"], "checkpoint.every_n_train_steps would save where"),
        (["+callbacks.checkpoint.save_on_exception=true"], "checkpoint.save_on_exception would save where"),
        (["callbacks.last.every_n_steps=0"], "every_n_steps must be at least 1"),
        (["data.seed=-1"], "seed must be at least 0, got -1"),
        (["trainer.precision=bf16-true"], "torchvision selects boxes .* take bf16-mixed"),
    ],
)
def test_what_cannot_be_resumed_exactly_is_refused(
    more: list[str], message: str, scenes: Path, tmp_path: Path
) -> None:
    words = tiny(tmp_path / "run", scenes, "~logger", *more)
    with pytest.raises(ConfigError, match=message):
        train(tiny_config("scenes_plain", words))
    assert not (tmp_path / "run").exists()


def test_without_checkpoint_callbacks_nothing_is_saved(scenes: Path, tmp_path: Path) -> None:
    words = tiny(tmp_path, scenes, "callbacks.checkpoint=null", "callbacks.last=null", "~logger", steps=1)
    assert train(tiny_config("scenes_plain", words)).best is None
    assert not list(tmp_path.rglob("*.ckpt"))


def test_without_best_checkpoints_a_run_ends_all_the_same(scenes: Path, tmp_path: Path) -> None:
    words = tiny(tmp_path, scenes, "callbacks.checkpoint=null", "~logger", steps=1)
    outcome = train(tiny_config("scenes_plain", words))
    assert outcome.best is None
    assert outcome.steps == 1


def test_an_evaluation_of_several_processes_is_refused(distilled: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={distilled}/checkpoints/last.ckpt", f"run_dir={tmp_path}", "trainer=cpu"]
    with pytest.raises(ConfigError, match="on one device"):
        evaluate(compose_config("eval", [*words, "trainer.devices=2"]))


def test_a_teacher_with_a_new_head_teaches_features_alone(
    scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    state = torch.load(teacher, weights_only=True)["state_dict"]
    state = {k.removeprefix("student."): v for k, v in state.items()}
    for key in [k for k in state if "box_predictor" in k]:
        state[key] = state[key][:4]  # of a teacher of fewer classes
    torch.save(state, tmp_path / "other.pth")
    words = tiny(tmp_path, scenes, *tiny_teacher(tmp_path / "other.pth"), steps=1)
    with pytest.raises(WeightsError, match="new_head=true"):
        train(tiny_config("scenes", words))
    words.append("teacher.new_head=true")
    with pytest.raises(ConfigError, match=r"nothing to teach: leave the head term out"):
        train(tiny_config("scenes", words))
    outcome = train(compose_config("train", ["+experiment=scenes", *words, "~distiller.terms.head"]))
    assert outcome.steps == 1
