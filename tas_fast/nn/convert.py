"""Fused BatchNorm + residual + ReLU in networks that were written without it.

The network is traced with torch.fx; every BatchNorm2d that ends in a ReLU, directly or after one addition, becomes a
`FusedBatchNorm2d` at the place of the last operation it takes in. Parameters and buffers are the same tensors under
the same names, so optimizers, `state_dict` and checkpoints go on working.
"""

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from tas_fast.nn.fragment import FusedBatchNorm2d

_RELU_FUNCTIONS = {F.relu, torch.relu, torch.relu_}
_RELU_METHODS = {"relu", "relu_"}
_ADD_FUNCTIONS = {operator.add, operator.iadd, torch.add}
_ADD_METHODS = {"add", "add_"}


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: fused norms with what they took in, and the reason for each norm that stayed."""

    fused: dict[str, str]  # name of the norm -> "relu" or "residual + relu"
    kept: dict[str, str]  # name of the norm -> why

    def __str__(self) -> str:
        lines = [f"{name}: fused with {what}" for name, what in self.fused.items()]
        lines += [f"{name}: kept, {why}" for name, why in self.kept.items()]
        return "\n".join(lines) or "no BatchNorm2d found"


def convert(model: nn.Module) -> fx.GraphModule:
    """Return `model` as a graph whose BatchNorm2d are fused with the addition and ReLU behind them.

    The result shares parameters and buffers with `model` and computes the same, in training and evaluation; only the
    order of floating-point operations differs. `model` itself stays as it is, so going back is using it.
    `result.conversion` says what was fused and what was not, and why.

    Args:
        model: a network that torch.fx can trace, such as torchvision's ResNets.

    Raises:
        ValueError: torch.fx cannot trace the network (its control flow depends on data).

    Example:
        >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> print(convert(block).conversion)
        1: fused with relu
    """
    try:
        graph = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, NotImplementedError) as error:
        why = str(error).split("\n")[0]
        raise ValueError(f"convert: model {type(model).__name__} cannot be traced by torch.fx: {why}") from error
    graph.training = model.training
    fused: dict[str, str] = {}
    kept: dict[str, str] = {}
    norms = [node for node in graph.graph.nodes if _is_norm(graph, node)]
    calls = [node.target for node in norms]
    for node in norms:
        name = str(node.target)
        reason: str | None = _obstacle(graph, node, calls.count(node.target))
        relu = _only_user(node)
        addition = relu if relu is not None and _is_addition(relu) else None
        if addition is not None:
            relu = _only_user(addition)
        if reason is None and (relu is None or not _is_relu(graph, relu)):
            reason = "no ReLU takes its result alone, directly or after one addition"
        if reason is None:
            assert relu is not None
            _fuse(graph, node, addition, relu)
            fused[name] = "relu" if addition is None else "residual + relu"
        else:
            kept[name] = reason
    graph.delete_all_unused_submodules()
    graph.recompile()
    _order_like(graph, model)
    graph.conversion = Conversion(fused, kept)  # type: ignore[assignment]
    return graph


def _order_like(graph: nn.Module, model: nn.Module) -> None:
    """Sort submodules as in `model`; tracing has sorted them by use, and optimizers' states go by position."""
    places = {name: place for place, name in enumerate(model._modules)}
    graph._modules = dict(sorted(graph._modules.items(), key=lambda item: places.get(item[0], len(places))))
    for name, child in graph._modules.items():
        original = model._modules.get(name)
        if child is not None and original is not None and child is not original:
            _order_like(child, original)


def _is_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.BatchNorm2d)


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), nn.ReLU)
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS
    return node.op == "call_method" and node.target in _RELU_METHODS


def _is_addition(node: fx.Node) -> bool:
    """Whether `node` adds two different tensors of the graph and nothing else."""
    known = _ADD_FUNCTIONS if node.op == "call_function" else _ADD_METHODS if node.op == "call_method" else set()
    operands = [argument for argument in node.args if isinstance(argument, fx.Node)]
    return node.target in known and len(node.args) == len(set(operands)) == 2 and not node.kwargs


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _obstacle(graph: fx.GraphModule, node: fx.Node, calls: int) -> str | None:
    norm = graph.get_submodule(str(node.target))
    if type(norm) is not nn.BatchNorm2d:
        return f"it is a {type(norm).__name__}"
    if calls > 1:
        return f"it is called {calls} times"
    if norm.weight is not None and norm.weight.dtype not in (torch.float32, torch.float64):
        return f"its parameters are {norm.weight.dtype}, the operator wants float32 or float64"
    return None


def _fuse(graph: fx.GraphModule, node: fx.Node, addition: fx.Node | None, relu: fx.Node) -> None:
    """Put the fused norm where the ReLU is: everything it reads has been computed there."""
    name = str(node.target)
    norm = graph.get_submodule(name)
    assert isinstance(norm, nn.BatchNorm2d)
    module = FusedBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, relu=True
    )
    module._parameters, module._buffers, module.training = norm._parameters, norm._buffers, norm.training
    graph.set_submodule(name, module)
    inputs = [node.args[0]]
    if addition is not None:
        inputs.append(next(argument for argument in addition.args if argument is not node))
    with graph.graph.inserting_before(relu):
        call = graph.graph.call_module(name, tuple(inputs))
    relu.replace_all_uses_with(call)
    for old in (relu, addition, node):
        if old is not None:
            graph.graph.erase_node(old)
