"""The content of a source of weights, and what a checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from defeat.detectors.class_order import BACKGROUND
from defeat.detectors.weights.averaged import choose_state_dict
from defeat.detectors.weights.run_config import check_targets, copy_config
from defeat.detectors.weights.tensors import check_tensors
from defeat.errors import WeightsError
from defeat.io.text import quote


class WeightFile(NamedTuple):
    """The content of a source of weights."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    """Class names, where the file is a checkpoint of this project; else None."""
    config: dict[str, Any] | None
    """The run's configuration, likewise."""
    outputs: tuple[str, ...] | None = None
    """What each output of the classification head stands for, background first: of a checkpoint of this
    project or a torchvision enum; None where the file does not say."""
    enum: str | None = None
    """A torchvision enum's own name (``DEFAULT`` is another name of one)."""
    source: str = ""
    """The name of the source in messages."""
    divided: dict[str, list[str]] | None = None
    """The pictures of each part, where the run divided its data set itself, by paths relative to its root."""

    def node(self, key: str, instead: str) -> dict[str, Any] | None:
        """A part of the run's configuration that may be built; None where there is none.

        Building a configuration calls what its ``_target_`` names. The file may come from anybody, so only
        what this package's own configuration files name is called for it, and public builders and transforms
        of torchvision.

        Args:
            key: a key of the configuration's top level, such as ``student``.
            instead: what the user can give to build something else, for the message.

        Raises:
            WeightsError: the part names anything else.
        """
        part = (self.config or {}).get(key)
        if not isinstance(part, dict):
            return None
        check_targets(part, key, self.source, instead)
        return part


def unwrap(path: Path, content: Any, ema: bool | None = None) -> WeightFile:
    """Find the tensors of a detector in what a file held: a state_dict, or a checkpoint of any project.

    Args:
        path: for messages.
        content: of the file.
        ema: see :func:`~defeat.detectors.weights.averaged.choose_state_dict`.
    """
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state_dict")
    own = content.get("defeat")
    tensors = choose_state_dict(path, content, ema)
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise WeightsError(f"{path} holds no tensors by name: not a state_dict or checkpoint")
    if not isinstance(own, Mapping):
        return WeightFile(check_tensors(path, tensors), None, None, source=str(path))
    student = {k.removeprefix("student."): v for k, v in tensors.items() if k.startswith("student.")}
    if not student:
        raise WeightsError(f"{path} is a checkpoint of this project without its detector's tensors")
    classes = own.get("classes")
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise WeightsError(f"{path}: its list of class names is {quote(classes)}; it is damaged")
    outputs = (BACKGROUND, *classes)
    return WeightFile(
        check_tensors(path, student),
        tuple(classes),
        copy_config(path, own.get("config")),
        outputs,
        source=str(path),
        divided=_lists(path, own.get("divided")),
    )


def _lists(path: Path, divided: Any) -> dict[str, list[str]] | None:
    if divided is None:
        return None
    if not isinstance(divided, Mapping) or not all(isinstance(names, list) for names in divided.values()):
        raise WeightsError(f"{path}: its record of how the data were divided is damaged")
    return {str(part): list(map(str, names)) for part, names in divided.items()}
