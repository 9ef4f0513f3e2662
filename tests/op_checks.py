"""The standard checks of an operator: agreement with a plain formulation, gradients, torch's own checks, compilation.

An operator under test and its opponent take the same tensors; what is not a tensor is bound beforehand. `rejects` is a
table of wrong arguments in each test file.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def check_matches(operator: Function, opponent: Function, tensors: Sequence[Tensor | None]) -> None:
    """The result is as close to the opponent in float64 as the opponent in the operator's own precision."""
    with torch.no_grad():
        result = operator(*tensors)
        exact = opponent(*(_cast(x, torch.float64) for x in tensors))
        rough = opponent(*(_cast(x, _at_least_float32(x)) for x in tensors))
    assert_as_accurate(result, rough.to(result.dtype), exact)


def check_gradients(operator: Function, opponent: Function, tensors: Sequence[Tensor | None]) -> None:
    """Every gradient is as close to the opponent's in float64 as the opponent's in the operator's own precision."""
    result, grads, grad_out = _gradients(operator, tensors, None)
    _, exact, _ = _gradients(opponent, [_cast(x, torch.float64) for x in tensors], grad_out)
    _, rough, _ = _gradients(opponent, [_cast(x, _at_least_float32(x)) for x in tensors], grad_out)
    assert result.requires_grad == bool(grads)
    for ours, theirs, truth in zip(grads, rough, exact, strict=True):
        assert_as_accurate(ours, theirs.to(ours.dtype), truth)


def check_gradcheck(operator: Function, tensors: Sequence[Tensor | None]) -> None:
    """Gradients agree with finite differences in float64."""
    assert torch.autograd.gradcheck(operator, [_leaf(_cast(x, torch.float64)) for x in tensors], fast_mode=False)


def check_operator(overload: Any, arguments: Sequence[Any]) -> None:
    """torch.library.opcheck: schema, autograd registration, fake tensors, and tracing with dynamic shapes."""
    with warnings.catch_warnings():
        # opcheck looks at .grad of its own copies of the arguments, which are not leaves.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        torch.library.opcheck(overload, tuple(arguments))


def check_compiles(operator: Function, batches: Sequence[Sequence[Tensor | None]]) -> None:
    """One graph without breaks gives eager results and gradients, for every batch of tensors in turn."""
    torch.compiler.reset()
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    for tensors in batches:
        eager, eager_grads, grad_out = _gradients(operator, tensors, None)
        traced, traced_grads, _ = _gradients(compiled, tensors, grad_out)
        torch.testing.assert_close(traced, eager)
        for ours, expected in zip(traced_grads, eager_grads, strict=True):
            torch.testing.assert_close(ours, expected)


def assert_as_accurate(result: Tensor, rough: Tensor, exact: Tensor) -> None:
    """Assert that `result` is at most twice as far from `exact` as `rough` is, plus 64 units in the last place.

    The units allow for another order of summation where terms cancel; torch's own layers add up in float64 on the CPU.
    """
    assert result.shape == exact.shape
    assert result.dtype == rough.dtype
    if result.numel() == 0:
        return
    unit = torch.finfo(result.dtype).eps * exact.abs().max().item()
    allowed = 2 * (rough.double() - exact).abs().max().item() + 64 * unit
    distance = (result.double() - exact).abs().max().item()
    assert distance <= allowed, f"{distance:.3g} from the exact result, {allowed:.3g} allowed"


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Return whether both are contiguous, or both channels_last and not contiguous."""
    return all(
        a.is_contiguous(memory_format=layout) == b.is_contiguous(memory_format=layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    )


def _gradients(
    function: Function, tensors: Sequence[Tensor | None], grad_out: Tensor | None
) -> tuple[Tensor, list[Tensor], Tensor]:
    leaves = [_leaf(x) for x in tensors]
    result = function(*leaves)
    if grad_out is None:
        grad_out = torch.randn(result.shape, dtype=torch.float64).to(result)
    inputs = [x for x in leaves if x is not None and x.requires_grad]
    return result, list(torch.autograd.grad(result, inputs, grad_out.to(result.dtype))), grad_out


def _leaf(x: Tensor | None) -> Tensor | None:
    return x.detach().requires_grad_() if x is not None and x.is_floating_point() else x


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x.to(dtype) if x is not None and x.is_floating_point() else x


def _at_least_float32(x: Tensor | None) -> torch.dtype:
    return torch.float32 if x is None else torch.promote_types(x.dtype, torch.float32)
