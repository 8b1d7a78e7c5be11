"""Schedules that cannot be meant are told; those of the experiments are not."""

from __future__ import annotations

import pytest

from defeat.config import compose_config
from defeat.run.check_schedule import schedule_problems


def told(*words: str, images: int, processes: int = 1) -> list[str]:
    config = compose_config("train", ["run_dir=x", "data.root=x", *words])
    return [f"{p.cause}: {p.remedy}" for p in schedule_problems(config, images, processes)]


COCO = "+experiment=frcnn_r50"


def test_the_recipes_are_right_on_their_data() -> None:
    assert told(COCO, images=117_266) == []
    assert told(COCO, "data.batch_size=2", images=117_266, processes=8) == []
    assert told("+experiment=voc_frcnn_r50", images=16_551) == []
    assert told("+experiment=bccd_plain", "student.backbone_weights=x", images=205) == []
    assert told("+experiment=scenes_plain", images=2400) == []


def test_a_rate_for_more_images_than_a_step_has() -> None:
    (text,) = told(COCO, "data.batch_size=2", images=117_266)
    assert "0.02 is for 16 images a step, and a step has 2: set optim.optimizer.lr=0.0025" in text
    assert told(COCO, "data.batch_size=2", "trainer.accumulate_grad_batches=8", images=117_266) == []
    assert told(COCO, "data.batch_size=2", "optim.optimizer.lr=0.0025", images=117_266) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # 160 images in steps of 16: 10 steps an epoch.
        (
            ["trainer.max_epochs=12"],
            "the warm-up of 500 steps does not end before the training, which has 120",
        ),
        (
            ["trainer.max_epochs=9", "optim.lr_schedule.warmup_steps=5"],
            "milestones [11] (epochs) lie beyond the end of the training, after 9 epochs: "
            "set optim.lr_schedule.milestones=[6,8.25]",
        ),
        (
            ["trainer.max_steps=8", "optim=adamw", "optim.lr_schedule.warmup_steps=1"],
            "ends after 8 steps, before its first validation after 10",
        ),
        (
            [
                *("trainer.max_steps=8", "optim=adamw", "optim.lr_schedule.warmup_steps=1"),
                *("trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=18"),
                "trainer.accumulate_grad_batches=2",
            ],
            "ends after 8 steps, before its first validation after 9: ",
        ),
        (
            [
                *("trainer.max_steps=14", "optim=adamw", "optim.lr_schedule.warmup_steps=1"),
                *("trainer.check_val_every_n_epoch=2", "trainer.val_check_interval=0.5"),
            ],
            "ends after 14 steps, before its first validation after 15: ",
        ),
    ],
)
def test_a_length_that_does_not_fit(words: list[str], expected: str) -> None:
    (text,) = told(COCO, *words, images=160)
    assert expected in text
