"""A term of somebody else's: what it must say, what it is asked, and how it is refused for too little."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from defeat.detectors import FrozenTeacher
from defeat.distill import DistillBatch, Distiller, LevelPair, Term, WeightKey, weight_keys
from defeat.distill.terms import GradientSite
from defeat.errors import ConfigError
from tests.helpers.agree import detector, forward, once


class Scale(Term):
    """Mean difference of stages, without saying which."""

    weight_keys: ClassVar[dict[str, str]] = {"stage": "loss_scale", "off": "other"}

    def __init__(self, student: Any, teacher: Any, *, loss_scale: float = 2.0, other: float = 0.0) -> None:
        super().__init__({"stage": loss_scale, "off": other}, maps="stages")

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        means = [x.stages["0"].mean() for x in (batch.student_captures, batch.teacher_captures)]
        return self.weighted({"stage": means[0] - means[1], "off": means[0]})


class Finest(Scale):
    """It says which stage it compares."""

    def __init__(self, student: Any, teacher: Any, *, loss_scale: float = 1.0, other: float = 0.0) -> None:
        finest = LevelPair(student.stages[0], teacher.stages[0])
        Term.__init__(self, {"stage": loss_scale, "off": other}, maps="stages", levels=[finest])

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        assert list(batch.teacher_captures.stages) == [self.levels[0].teacher.name]
        return {"stage": batch.student_captures.stages["0"].sum()}


@cache
def detectors() -> tuple[nn.Module, nn.Module]:
    return detector("frcnn", "student"), detector("frcnn", "teacher")


def distil(term: Any) -> tuple[Distiller, dict[str, Tensor]]:
    student, teacher = detectors()
    with once():
        distiller = Distiller(student, teacher, terms={"mine": term})
    return distiller, distiller(student, FrozenTeacher(teacher), forward(student), 0.0)


def test_a_term_needs_no_more_than_the_contract() -> None:
    distiller, losses = distil(Scale)
    assert list(losses) == ["mine_stage"]
    assert distiller.weights == {"mine_stage": 2.0}
    assert distiller.key("mine_stage") == "distiller.terms.mine.loss_scale"
    assert distiller.gradient_sites == {"mine_stage": GradientSite("stages", (4, 8, 16, 32))}
    assert not distiller.needs_teacher_head
    distiller.set_weights({"mine_stage": 6.0})
    assert distiller.terms["mine"].weights == {"stage": 6.0, "off": 0.0}  # type: ignore[comparison-overlap]


def test_of_the_stages_only_those_are_kept_that_a_term_names() -> None:
    distiller, _ = distil(Finest)
    assert distiller.gradient_sites["mine_stage"].strides == (4,)


class NotATerm(nn.Module):
    def __init__(self, *_: Any) -> None:
        super().__init__()


class NoKeys(Scale):
    weight_keys: ClassVar[dict[str, str]] = {}


class OtherLosses(Scale):
    weight_keys: ClassVar[dict[str, str]] = {"stage": "loss_scale"}


class OtherArgument(Scale):
    weight_keys: ClassVar[dict[str, str]] = {"stage": "stage_weight", "off": "other"}


class NoForward(Term):
    weight_keys: ClassVar[dict[str, str]] = {"": "weight"}

    def __init__(self, student: Any, teacher: Any, weight: float = 1.0) -> None:
        super().__init__({"": weight})


class OtherMaps(Scale):
    def __init__(self, student: Any, teacher: Any, loss_scale: float = 1.0, other: float = 1.0) -> None:
        Term.__init__(self, {"stage": loss_scale, "off": other}, maps="pyramid")  # type: ignore[arg-type]


class Forgotten(Scale):
    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        return {"": torch.zeros(())}


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (NotATerm, r"distiller\.terms\.mine: NotATerm is not derived from defeat\.distill\.Term"),
        (NoKeys, "NoKeys does not say which losses it has: set weight_keys"),
        (
            OtherLosses,
            r"gives weights for the losses \['stage', 'off'\], but its weight_keys are of \['stage'\]",
        ),
        (OtherArgument, r"weight_keys \['stage_weight'\] that its constructor does not take"),
        (NoForward, r"NoForward has no forward\(batch\)"),
        (OtherMaps, "maps must be neck or stages, got 'pyramid'"),
        (Forgotten, r"Forgotten computed the losses \[''\], and has weights of \['stage'\]"),
    ],
)
def test_a_term_that_breaks_the_contract_is_refused_in_one_line(term: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        distil(term)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("weights", [{"loss_scale": -1.0}, {"loss_scale": 0.0}])
def test_weights_that_make_no_term_are_refused_by_their_keys(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="loss_scale"):
        Scale(None, None, **weights)


def test_the_keys_of_weights_are_read_off_the_classes() -> None:
    config = {
        "terms": {
            "mine": {"_target_": f"{__name__}.Scale", "loss_scale": 3.0},
            "neck": {"_target_": "defeat.distill.FeatureTerm", "object_weight": 1.0, "my_weight": 2.0},
            "off": None,
        }
    }
    expected = [
        ("mine", "loss_scale"),
        ("mine", "other"),
        ("neck", "object_weight"),
        ("neck", "background_weight"),
    ]
    assert weight_keys(config) == [WeightKey(*key) for key in expected]
    assert str(WeightKey(*expected[0])) == "distiller.terms.mine.loss_scale"
    assert weight_keys(None) == []
    for target in ("defeat.distill.full_mask", "defeat.distill.Nothing", "no_such_module.Term"):
        with pytest.raises(ConfigError, match=rf"distiller\.terms\.x: {target} is not a class derived from"):
            weight_keys({"terms": {"x": {"_target_": target}}})
