"""From a config node to a detector that is ready to train: build, fill, report."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from defeat.detectors.adapted import adapt
from defeat.detectors.class_order import ClassMap, read_class_map
from defeat.detectors.compiled_backbone import COMPILE_MODES, CompileMode
from defeat.detectors.loading import LoadReport, load_backbone_weights, load_detector_weights
from defeat.detectors.teacher_precision import PRECISIONS, Precision
from defeat.detectors.weights import WeightFile, sha256, weight_path
from defeat.errors import ConfigError, WeightsError
from defeat.io.text import few

log = logging.getLogger(__name__)

SINCE = {
    "size_divisible": 32,
    "anchors": "rounded",
    "strides": "derived",
    "roi_align": "torchvision",
    "heads": "v1",
    "extra_levels_from": "p5",
    "relu_before_p7": True,
}
"""Settings of this project's builders that older checkpoints do not have, and what they stood for then."""

SILENT = (
    *("backbone", "returned_layers", "stride_in_1x1", "anchor_sizes", "aspect_ratios"),
    *("anchors", "strides", "roi_align", "extra_levels_from", "relu_before_p7"),
)
"""Settings that change what a detector computes; most of them leave its parameters' shapes alone."""


class Detector(NamedTuple):
    """A built detector and where its weights came from."""

    model: nn.Module
    source: str | None
    """The detector weights' path or name; None where it starts from a backbone or from nothing."""
    whole: bool
    """Whether ``weights`` filled everything, the classification head too."""
    digest: str | None
    """SHA-256 of that file, a shipped one too; None for an enum (torchvision checks those) or no weights."""
    report: LoadReport | None = None
    """The keys that went in, into its backbone alone where ``source`` is None; None for no weights."""
    file: WeightFile | None = None
    """The file of ``source`` without its tensors: its classes and configuration."""
    precision: Precision | None = None
    """The precision of a teacher, see :mod:`~defeat.detectors.teacher_precision`; None for a student."""
    infinite: tuple[str, ...] = ()
    """Tensors of its weights with infinite values, as they were loaded: what is folded later hides them."""
    compile: CompileMode | None = None
    """The mode in which a teacher's backbone is compiled; None for not at all."""
    known_labels: tuple[int, ...] | None = None
    """Labels, from 1 on, of the classes that a teacher knows; None for all of them."""


def create_detector(
    model: Callable[..., nn.Module],
    classes: Sequence[str],
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    new_head: bool = False,
    ema: bool | None = None,
    precision: Precision | None = None,
    compile: CompileMode | None = None,
    class_map: ClassMap | str | None = None,
    teacher: bool = False,
    download: bool = False,
) -> Detector:
    """Build a detector for ``classes`` and load its weights.

    Args:
        model: a builder that takes ``num_classes`` (with background): one of this package, or any of
            ``torchvision.models.detection``.
        classes: K class names without background.
        weights: whole-detector weights: a path (.pth, .safetensors, a checkpoint of this project), or the
            name of a file that this package ships or of a torchvision weights enum. Where they name their
            classes, the head is put into the order of ``classes``.
        backbone_weights: classifier weights for the backbone, the same kinds; not read where ``weights`` are
            given, which fill the backbone too.
        new_head: accept ``weights`` of other classes, and start the classification head anew then, but for
            the outputs of classes that they know by name.
        ema: of a file with averaged weights (EMA) beside raw ones: True takes the averaged ones, False the
            raw ones, None those that the program which wrote the file would; a warning says which.
        precision: of a teacher, see :mod:`~defeat.detectors.teacher_precision`; None leaves it to
            the training.
        compile: of a teacher, see :func:`~defeat.detectors.compiled_backbone.compile_backbone`; None for
            not at all.
        class_map: for classes that ``weights`` call otherwise: name of the class to the name, or the number,
            of its output there; or such a map as text, in YAML.
        teacher: the detector only teaches: its ``weights`` may be of further classes, and may lack some.
        download: allow enums to be fetched.

    Raises:
        ConfigError: ``precision``, ``compile`` or ``ema`` is none of these; torchvision would download, or
            ignores a setting.
        WeightsError: see :mod:`defeat.detectors.loading`; or a checkpoint that was trained with other
            settings in :data:`SILENT`.
    """
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("compile", compile, COMPILE_MODES)
    if ema is not None and not weights and not backbone_weights:
        raise ConfigError(
            f"ema={ema} chooses between the weights of a file, and none is given: set `weights` or "
            "`backbone_weights` too (in an evaluation, ema=... beside checkpoint=...)"
        )
    if not download:
        _refuse_download(model)
    detector = _build(model, len(classes) + 1)
    adapt(detector)
    built = Detector(detector, None, False, None, precision=precision, compile=compile)
    if weights:
        report, file = load_detector_weights(
            detector,
            weights,
            classes=classes,
            new_head=new_head,
            download=download,
            ema=ema,
            teacher=teacher,
            class_map=read_class_map(class_map) if isinstance(class_map, str) else class_map,
        )
        if file.config is not None:
            _check_settings(weights, file.config, model)
        built = _loaded(built, weights, report, file)._replace(known_labels=_known(classes, report))
    elif backbone_weights:
        report = load_backbone_weights(detector, backbone_weights, download=download, ema=ema)
        built = built._replace(report=report)
    return _told(built) if built.report else built


def _told(built: Detector) -> Detector:
    """Log what was loaded, and warn of values and statistics with which nothing can be computed."""
    assert built.report is not None
    source = built.report.source
    log.info("%s", built.report)
    built = built._replace(infinite=_infinite(built.model))
    if built.infinite:
        log.warning(
            "%s: infinite values in %s, too large for the float16 that they were stored in: their channels "
            "are dead; take the file in float32",
            source,
            few(built.infinite),
        )
    if zero := _zero_variances(built.model):
        log.warning(
            "%s: all variances are 0 in %s: the statistics of its normalisation were not saved, and its "
            "outputs would be hundreds of times too large; take a file that has them",
            source,
            few(zero),
        )
    return built


def _zero_variances(detector: nn.Module) -> list[str]:
    """Name the layers whose variances are all 0; in trained networks, single channels often never vary."""
    state = detector.state_dict()
    names = [name for name, x in state.items() if name.endswith("running_var") and not x.is_meta]
    # a layer that was pruned away, with weights of 0, may lack statistics
    weights = {name: state.get(name.removesuffix("running_var") + "weight") for name in names}
    return [
        name for name, weight in weights.items() if not state[name].any() and (weight is None or weight.any())
    ]


def _infinite(detector: nn.Module) -> tuple[str, ...]:
    state = detector.state_dict()
    return tuple(name for name, x in state.items() if not x.is_meta and not x.isfinite().all())


def _known(classes: Sequence[str], report: LoadReport) -> tuple[int, ...] | None:
    """Tell which labels are known; and warn of the others, which may be there under another name."""
    if not report.unknown:
        return None
    log.warning(
        "the teacher does not know %s: features are taught everywhere, class scores of the other classes "
        "alone; if %s calls one of them otherwise, set teacher.class_map={NAME: NAME_THERE}",
        few([*map(repr, report.unknown)], 4),
        report.source,
    )
    return tuple(i for i, name in enumerate(classes, 1) if name not in report.unknown)


def _check_choice(key: str, value: str | None, choices: Sequence[str]) -> None:
    if value not in (None, *choices):
        raise ConfigError(f"a teacher's {key} must be {', '.join(choices)} or null, got {value!r}")


def _loaded(built: Detector, source: str, report: LoadReport, file: WeightFile) -> Detector:
    """Note where the weights of a whole detector came from."""
    path = weight_path(source)
    return built._replace(
        source=source,
        whole=not (report.missing or report.mismatched or report.new),
        digest=sha256(path) if path.is_file() else None,
        report=report,
        file=file._replace(tensors={}),
    )


def _refuse_download(model: Callable[..., nn.Module]) -> None:
    """Builders of torchvision fetch weights by themselves, some of them unless they are told not to."""
    given = getattr(model, "keywords", {})  # of the partial that a configuration makes
    for name in ("weights", "weights_backbone"):
        own = inspect.signature(getattr(model, "func", model)).parameters.get(name)
        value = given.get(name, own.default) if own else None
        if value not in (None, inspect.Parameter.empty):
            raise ConfigError(
                f"the builder would download {name} ({value}): set model.{name}=null and give "
                "`weights` or `backbone_weights` beside `model`, or allow it with download=true"
            )


def _build(model: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    """Build, and take torchvision's warning that it ignores a setting for the error that it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Changing trainable_backbone_layers has no effect")
        try:
            return model(num_classes=num_classes)
        except UserWarning as warning:
            raise ConfigError(
                "torchvision ignores trainable_backbone_layers where it does not load the weights itself: "
                "leave it out (all layers learn), or use a builder of this project"
            ) from warning


def _check_settings(source: str, config: Mapping[str, Any], model: Callable[..., nn.Module]) -> None:
    """Weights may load whole and yet be of another detector: the checkpoint knows which one it was."""
    theirs = config.get("student", {}).get("model", {})
    if "backbone" in theirs:  # of a builder of this project
        theirs = SINCE | theirs
    ours = getattr(model, "keywords", {})  # of the partial that a configuration makes
    for key in SILENT:
        if key in ours and key in theirs and _plain(ours[key]) != _plain(theirs[key]):
            raise WeightsError(
                f"{source} was trained with {key}={_plain(theirs[key])}, but {key}={_plain(ours[key])} is "
                "configured here: set it to what the checkpoint was trained with"
            )


def _plain(value: Any) -> Any:
    """Lists of lists, whatever containers a configuration brings."""
    return value if isinstance(value, str) or not isinstance(value, Sequence) else [_plain(v) for v in value]
