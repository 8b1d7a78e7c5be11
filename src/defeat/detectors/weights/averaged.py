"""Averaged weights (EMA, SWA) beside the raw ones of a file, and which of them are taken."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from defeat.errors import WeightsError

log = logging.getLogger(__name__)

RAW = ("state_dict", "model", "model_state_dict", "net", "module")
"""Keys under which training programs save a model."""

AVERAGED = ("model_ema", "state_dict_ema", "ema", "ema_model", "ema_state_dict", "model_ema_state_dict")
"""Keys under which they save its average: torchvision's references, timm, detectors of the DETR family ..."""

COUNTERS = ("n_averaged", "steps", "num_updates", "decay")
"""Numbers that averages keep beside the weights (torch's ``AveragedModel``, mmengine, ``LitEma``)."""

DEPTH = 4
"""How deep a state_dict may lie within others' dicts; a pickle can hold a dict that contains itself."""


class StateDict(NamedTuple):
    """Tensors by name, and the key of the file under which they are."""

    key: str
    tensors: dict[Any, Tensor]


class Found(NamedTuple):
    """The weights that a file holds."""

    raw: StateDict | None
    averaged: StateDict | None
    averaged_first: bool = False
    """Whether the program that wrote the file has put the average where the model's weights are expected."""


def choose_state_dict(path: Path, content: Mapping[Any, Any], ema: bool | None) -> dict[Any, Tensor]:
    """Find the model's tensors in a file, and log which are taken where there are averaged ones too.

    Args:
        path: for messages.
        content: of the file: a state_dict, or a checkpoint of any program.
        ema: True for the averaged weights, False for the raw ones, None for those that the program which
            wrote the file would load first.

    Returns:
        The tensors; none where the file holds none.

    Raises:
        WeightsError: the weights that were asked for are not there.
    """
    raw, averaged, averaged_first = _find(content)
    first = averaged if raw is None or averaged_first else raw
    chosen = {None: first, True: averaged, False: raw}[ema]
    if chosen is None and first is not None:
        lacking, keys = ("averaged", AVERAGED) if ema else ("raw", RAW)
        raise WeightsError(
            f"{path} holds no {lacking} weights (under none of {', '.join(keys)}): "
            f"leave out ema={str(ema).lower()}"
        )
    if chosen is None:
        return {}
    _log_choice(path, raw, averaged, chosen, asked=ema is not None)
    return {name: tensor for name, tensor in chosen.tensors.items() if name not in COUNTERS}


def _log_choice(
    path: Path, raw: StateDict | None, averaged: StateDict | None, chosen: StateDict, *, asked: bool
) -> None:
    kind = "averaged" if chosen is averaged else "raw"
    if raw is None or averaged is None or asked:
        if averaged is not None:
            log.info("%s: its %s weights are taken (%s)", path, kind, chosen.key)
        return
    log.warning(
        "%s holds raw weights (%s) and averaged ones (%s): the %s ones are taken; ema=%s takes the others",
        path,
        raw.key,
        averaged.key,
        kind,
        "false" if chosen is averaged else "true",
    )


def _find(content: Mapping[Any, Any]) -> Found:
    raw, averaged = _under(content, RAW), _under(content, AVERAGED)
    if raw is None and averaged is None and (tensors := _tensors(content)):
        raw = StateDict("the whole file", tensors)
    current = _under(content, ("current_model_state",))
    if raw and current:  # Lightning's WeightAveraging exchanges them when it saves
        return Found(current, raw, averaged_first=True)
    if raw and averaged and averaged.key == "ema_state_dict" and "steps" in averaged.tensors:
        return Found(averaged, raw, averaged_first=True)  # so does mmengine
    return _split(raw) if raw and averaged is None else Found(raw, averaged)


def _split(both: StateDict) -> Found:
    """Tell raw and averaged weights of one state_dict apart by their names."""
    averaged = {
        name.partition(".")[2]: tensor
        for name, tensor in both.tensors.items()
        if isinstance(name, str) and name.partition(".")[0] in AVERAGED and "." in name
    }
    rest = {
        name: tensor for name, tensor in both.tensors.items() if str(name).partition(".")[0] not in AVERAGED
    }
    if averaged and rest:
        return Found(StateDict("the other names", rest), StateDict("names that begin with ema", averaged))
    # mmcv keeps a buffer for each parameter, and exchanges them when it saves.
    buffers = {f"ema_{str(name).replace('.', '_')}": name for name in both.tensors}
    held = {buffers[name]: tensor for name, tensor in both.tensors.items() if name in buffers}
    if held:
        main = {name: tensor for name, tensor in both.tensors.items() if name not in buffers}
        raw = StateDict("names that begin with ema_", {**main, **held})
        return Found(raw, StateDict("the other names", main), averaged_first=True)
    return Found(both, None)


def _under(content: Mapping[Any, Any], keys: Sequence[str]) -> StateDict | None:
    for key in keys:
        tensors = _tensors(content.get(key))
        if tensors:
            return StateDict(key, tensors)
    return None


def _tensors(node: Any, depth: int = DEPTH) -> dict[Any, Tensor]:
    """Return the tensors of a mapping, or of a mapping of a model within it."""
    if not isinstance(node, Mapping) or depth == 0:
        return {}
    tensors = {key: value for key, value in node.items() if isinstance(value, Tensor)}
    if tensors.keys() - set(COUNTERS):
        return tensors
    inner = (_tensors(node.get(key), depth - 1) for key in (*RAW, "shadow"))
    return next(filter(None, inner), {})
