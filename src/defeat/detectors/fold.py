"""Frozen batch normalisation folded into the convolutions before it: one pass over the maps less for each."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

log = logging.getLogger(__name__)


def fold_normalisation(backbone: nn.Module) -> int:
    """Fold frozen batch normalisation into the convolutions before it, in place.

    Found by the flow of the data, not by names: a convolution that is called once, whose only reader is a
    normalisation that is called once.

    Args:
        backbone: in eval mode; what ``torch.fx`` cannot trace is left as it is.

    Returns:
        The number of layers that were folded.
    """
    try:
        graph = _Tracer().trace(backbone)
    except Exception as error:  # whatever a module of somebody else's does while it is traced
        log.info("normalisation is not folded: the backbone cannot be traced (%s)", error)
        return 0
    pairs = list(_foldable(backbone, graph))
    for conv, norm in pairs:
        place = str(norm.target)
        _fold(cast(nn.Conv2d, backbone.get_submodule(str(conv.target))), backbone.get_submodule(place))
        parent, _, name = place.rpartition(".")
        setattr(backbone.get_submodule(parent), name, Summand() if _is_added(norm) else nn.Identity())
    return len(pairs)


class Summand(nn.Module):
    """Puts a summand of a residual block into float32 at least.

    In half precision the stream that all blocks add to would be rounded once by each of them, which in a deep
    network is most of the error; so only what is added is rounded, and not the sum.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers."""
        return x.to(torch.promote_types(x.dtype, torch.float32))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FrozenBatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _is_added(node: fx.Node) -> bool:
    return any(user.target in (operator.add, operator.iadd, torch.add) for user in node.users)


def _foldable(backbone: nn.Module, graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Calls of convolutions and of the normalisations that can go into them."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    modules = [backbone.get_submodule(str(node.target)) for node in calls]
    times = Counter(map(id, modules))
    of = dict(zip(calls, modules, strict=True))
    for node, module in of.items():
        before = node.args[0] if node.args else None
        if not _is_fixed_normalisation(module) or not isinstance(before, fx.Node):
            continue
        conv = of.get(before)
        once = conv is not None and times[id(conv)] == times[id(module)] == 1 and len(before.users) == 1
        if type(conv) is nn.Conv2d and once:  # a subclass may make its weight from something else
            yield before, node


def _is_fixed_normalisation(module: nn.Module) -> bool:
    return isinstance(module, FrozenBatchNorm2d) or (
        isinstance(module, nn.BatchNorm2d) and not module.training and module.running_mean is not None
    )


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """In float64: what is folded is rounded once."""
    weight, bias = fuse_conv_bn_weights(
        conv.weight.detach().double(),
        _double(conv.bias),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        _double(norm.weight),
        _double(norm.bias),
    )
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double()
