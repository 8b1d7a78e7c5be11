"""A Python file that builds the student from torchvision alone and fills it with the exported weights."""

from __future__ import annotations

import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, cast

import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

from defeat.detectors import builders
from defeat.detectors.backbones import MOBILENETS
from defeat.errors import ConfigError
from defeat.export.load_script_code import Code, joined
from defeat.export.load_script_levels import anchors, pooling, scales, topmost
from defeat.export.student import TrainedStudent

NAME = "load_student.py"
"""Name of the file, beside the weights."""

_OWN: Mapping[Callable[..., nn.Module], type[nn.Module]] = {
    builders.faster_rcnn: FasterRCNN,
    builders.retinanet: RetinaNet,
    builders.fcos: FCOS,
}
"""The builders of this project, and the class of torchvision that each of them makes."""

_TEMPLATE = '''\
"""The detector of {weights} with torch and torchvision alone: load() returns it in eval mode.

It takes a list of (3, H, W) float32 RGB images in [0, 1] of any size, which it resizes, pads and normalises
by itself, and returns for each "boxes" (N, 4) xyxy in pixels of that image, "scores" (N,) and "labels" (N,).
Label i is CLASSES[i]{background}.
In float32 it computes to the bit what the trained student does. In half precision it does not: that one keeps
anchors, boxes and frozen normalisation in float32, or half, where torchvision does otherwise.
"""

{imports}

CLASSES = [
{classes}]
{definitions}

def load(path=Path(__file__).with_name("{weights}")):
{body}
    detector.load_state_dict(read(Path(path)))
    return detector.eval()


def read(path):
    if path.suffix != ".safetensors":
        return torch.load(path, weights_only=True)
    from safetensors.torch import load_file

    return load_file(path)
'''

_BACKGROUND = "; leave out label 0, for which this family has an output too"


def load_script(student: TrainedStudent, weights: str) -> str:
    """Write the file.

    Args:
        student: it is not changed.
        weights: name of the file of its weights: ``.safetensors``, or anything else for ``torch.save``.

    Raises:
        ConfigError: the student is of a builder that is neither this project's nor torchvision's.
    """
    code = _code(student)
    imports = {"from pathlib import Path", "import torch", *code.imports}
    return _TEMPLATE.format(
        weights=weights,
        background="" if hasattr(student.detector, "roi_heads") else _BACKGROUND,
        imports="\n".join(sorted(imports, key=_import_order)),
        classes="".join(f"    {name!r},\n" for name in ("__background__", *student.classes)),
        definitions=code.classes,
        body=textwrap.indent("\n".join(code.lines), "    "),
    )


def _import_order(line: str) -> tuple[bool, str]:
    return not line.startswith(("from pathlib", "from functools")), line.split()[1]


def _code(student: TrainedStudent) -> Code:
    node = dict((student.config or {}).get("student", {}).get("model", {}))
    target = str(node.pop("_target_", ""))
    settings = {name: value for name, value in node.items() if not name.startswith("_")}
    outputs = len(student.classes) + 1
    if target.startswith("torchvision.models.detection."):
        return _torchvision(target, {**settings, "num_classes": outputs}, student.detector)
    builder: Any = pkgutil.resolve_name(target) if target else None
    if builder not in _OWN:
        raise ConfigError(
            f"no {NAME} can be written for a student that {target or 'nothing'} has built, which is neither "
            "a builder of this project nor one of torchvision.models.detection: leave out format=state_dict "
            "and safetensors"
        )
    bound = inspect.signature(builder).bind(outputs, **settings)
    bound.apply_defaults()
    return _own(_OWN[builder], bound.arguments, student.detector)


def _torchvision(target: str, settings: Mapping[str, Any], detector: nn.Module) -> Code:
    name = target.rpartition(".")[2]
    parameters = inspect.signature(pkgutil.resolve_name(target)).parameters
    # the weights come from the file
    settings = {**settings, **{key: None for key in ("weights", "weights_backbone") if key in parameters}}
    made = Code({f"from torchvision.models.detection import {name}"}, [_call("detector", name, settings)])
    if not hasattr(detector, "roi_heads"):
        return made
    pool: Any = detector.get_submodule("roi_heads.box_roi_pool")
    if pool.scales is None:  # its strides are not known, see adapt()
        return made
    return joined([made, Code(set(), ["pool = detector.roi_heads.box_roi_pool"]), scales(pool)])


def _own(family: type[nn.Module], settings: Mapping[str, Any], detector: nn.Module) -> Code:
    model = cast(Any, detector)
    parts = [_body(settings, detector), _pyramid(family, settings, model)]
    arguments = {key: settings[key] for key in inspect.signature(family).parameters if key in settings}
    arguments |= {key: getattr(model.transform, key) for key in ("min_size", "max_size", "size_divisible")}
    arguments["backbone"] = _Name("backbone")
    if family is FasterRCNN:
        parts.append(pooling(model.roi_heads.box_roi_pool))
        parts.append(_rcnn_heads(settings))
        arguments |= {
            "rpn_anchor_generator": _Name("anchors"),
            "box_roi_pool": _Name("pool"),
            "box_head": _Name("box_head"),
            "box_predictor": _Name(f"FastRCNNPredictor({settings['box_head_channels']}, len(CLASSES))"),
        }
        if settings["heads"] == "v2":
            arguments["rpn_head"] = _Name("rpn_head")
        arguments.pop("num_classes", None)
    else:
        arguments |= {"num_classes": _Name("len(CLASSES)"), "anchor_generator": _Name("anchors")}
    call = _call("detector", family.__name__, arguments)
    parts.append(Code({f"from torchvision.models.detection import {family.__name__}"}, [call]))
    return joined(parts)


def _rcnn_heads(settings: Mapping[str, Any]) -> Code:
    """The heads of a Faster R-CNN, see :func:`defeat.detectors.rcnn_heads.rcnn_heads`."""
    channels, hidden, module = settings["fpn_channels"], settings["box_head_channels"], FasterRCNN.__module__
    imports = {f"from {module} import FastRCNNPredictor"}
    if settings["heads"] == "v1":
        line = f"box_head = TwoMLPHead({channels * 7 * 7}, {hidden})"
        return Code(imports | {f"from {module} import TwoMLPHead"}, [line])
    imports |= {f"from {module} import FastRCNNConvFCHead", f"from {RPNHead.__module__} import RPNHead"}
    layer, layer_import = _norm_layer(settings["norm"])
    layers = f"{[channels] * 4}, [{hidden}], norm_layer={layer}"
    lines = [
        f"rpn_head = RPNHead({channels}, anchors.num_anchors_per_location()[0], conv_depth=2)",
        f"box_head = FastRCNNConvFCHead(({channels}, 7, 7), {layers})",
    ]
    return Code(imports | {layer_import}, lines)


def _norm_layer(norm: str) -> tuple[str, str]:
    """The class of a normalisation, and its import; without several processes ``sync`` is ``batch``."""
    if norm == "frozen":
        return "FrozenBatchNorm2d", "from torchvision.ops import FrozenBatchNorm2d"
    return "BatchNorm2d", "from torch.nn import BatchNorm2d"


def _pyramid(family: type[nn.Module], settings: Mapping[str, Any], model: Any) -> Code:
    """The pyramid over ``body``, and the anchors of its levels."""
    channels, fpn = settings["fpn_channels"], model.backbone.fpn
    inner = [block[0].in_channels for block in fpn.inner_blocks]
    imports = {"from torchvision.models.detection.backbone_utils import BackboneWithFPN"}
    arguments = f"body, layers, {inner}, {channels}, topmost"
    if settings.get("heads") == "v2":
        layer, layer_import = _norm_layer(settings["norm"])
        arguments, imports = f"{arguments}, norm_layer={layer}", imports | {layer_import}
    layers = f"layers = {dict(model.backbone.body.return_layers)!r}"
    lines = [layers, f"backbone = BackboneWithFPN({arguments})"]
    generator = model.rpn.anchor_generator if family is FasterRCNN else model.anchor_generator
    return joined(
        [
            topmost(fpn.extra_blocks),
            Code(imports, lines),
            anchors(generator, rounded=settings.get("anchors") != "float"),
        ]
    )


def _body(settings: Mapping[str, Any], detector: nn.Module) -> Code:
    """The network below the pyramid, see :func:`defeat.detectors.backbones.fpn_backbone`."""
    backbone = settings["backbone"]
    norms = (m for m in detector.get_submodule("backbone.body").modules())
    norm: Any = next(m for m in norms if isinstance(m, FrozenBatchNorm2d | _BatchNorm))
    layer, layer_import = _norm_layer(settings["norm"])
    imports = {layer_import}
    changed = {"eps": norm.eps} if norm.eps != 1e-5 else {}
    if settings["norm"] != "frozen" and norm.momentum != 0.1:
        changed["momentum"] = norm.momentum
    if changed:
        imports.add("from functools import partial")
        layer = f"partial({layer}, {', '.join(f'{key}={value}' for key, value in changed.items())})"
    if backbone == "resnet10":
        imports.add("from torchvision.models.resnet import BasicBlock, ResNet")
        return Code(imports, [f"body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer={layer})"])
    if backbone == "resnext101_32x4d":
        imports.add("from torchvision.models.resnet import Bottleneck, ResNet")
        made = f"ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4, norm_layer={layer})"
        return Code(imports, [f"body = {made}", *_moved_stride(settings)])
    if not hasattr(torchvision.models, backbone):
        raise ConfigError(
            f"no {NAME} can be written for a student with the backbone {backbone}, which torchvision does "
            "not have: leave out format=state_dict and safetensors"
        )
    imports.add(f"from torchvision.models import {backbone}")
    if backbone in MOBILENETS:
        imports.add("from torch import nn")
        return Code(imports, [f"body = nn.Sequential(*{backbone}(norm_layer={layer}).features[:-1])"])
    return Code(imports, [f"body = {backbone}(norm_layer={layer})", *_moved_stride(settings)])


def _moved_stride(settings: Mapping[str, Any]) -> list[str]:
    if not settings["stride_in_1x1"]:
        return []
    return [
        "for stage in (body.layer2, body.layer3, body.layer4):",
        "    stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)",
    ]


class _Name(str):
    """An expression, rather than a text."""

    def __repr__(self) -> str:
        return str(self)


def _call(result: str, function: str, arguments: Mapping[str, Any]) -> str:
    """Write a call, one argument a line, as formatters do."""
    return "\n".join(
        [f"{result} = {function}(", *(f"    {key}={value!r}," for key, value in arguments.items()), ")"]
    )
