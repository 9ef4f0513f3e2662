"""Depth aggregation: the weighted sum of feature maps after aligning their channels.

    out = sum_d weights_d * A_d h_d          A_d: channel interpolation C_d -> C = max_d C_d

    h_d = tensors[d] [N, C_d, H, W]    weights [D]    out [N, C, H, W]

Gradients: grad_h_d = weights_d * A_d^T grad_out, grad_weights_d = <grad_out, A_d h_d>. Saved: the inputs. A fast
version reads every input once and writes out once. Source: TAS (Dong and Yang, NeurIPS 2019), equation 5.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tas_fast.ops._library import (
    accumulation_dtype,
    define,
    described,
    differentiate,
    fake,
    implement,
    layout_of,
    wrong,
)
from tas_fast.ops.channel_interpolation import channel_interpolation

# A gradient whose entry in output_mask (tensors, weights) is false is returned empty: no tensors, or size [0].
define("weighted_interpolation_sum(Tensor[] tensors, Tensor weights) -> Tensor")
define(
    "weighted_interpolation_sum_backward(Tensor grad_out, Tensor[] tensors, Tensor weights, bool[2] output_mask) "
    "-> (Tensor[] grad_tensors, Tensor grad_weights)"
)


def weighted_interpolation_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the sum of `tensors`, each interpolated to the widest one's channels and multiplied by its weight.

    Args:
        tensors: D >= 1 tensors [N, C_d, H, W] that agree in all but C_d.
        weights: [D], float32 (float64 for float64 data).

    Returns:
        [N, max C_d, H, W], dtype and memory format of the first tensor.

    Raises:
        ValueError: there are no tensors, or a shape or dtype differs from the above.

    Example:
        >>> maps = [torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4)]
        >>> weighted_interpolation_sum(maps, torch.tensor([0.25, 0.5])).mean().item()
        0.75
    """
    _check(tensors, weights)
    return torch.ops.tas_fast.weighted_interpolation_sum.default(list(tensors), weights)


_wrong = partial(wrong, "weighted_interpolation_sum")


def _check(tensors: Sequence[Tensor], weights: Tensor) -> None:
    if not tensors:
        raise _wrong("tensors", "one or more [N, C_d, H, W]", "none")
    first = tensors[0]
    for x in tensors:
        if x.dim() != 4 or x.size(1) < 1 or not x.is_floating_point():
            raise _wrong("tensors", "floating-point [N, C_d, H, W]", described(x))
        if x.dtype != first.dtype or x.size(0) != first.size(0) or x.shape[2:] != first.shape[2:]:
            raise _wrong("tensors", f"alike in all but C_d: {described(first)}", described(x))
    if weights.shape != (len(tensors),):
        raise _wrong("weights", f"[D] with D = {len(tensors)} tensors", tuple(weights.shape))
    if weights.dtype != accumulation_dtype(first.dtype):
        raise _wrong("weights", f"{accumulation_dtype(first.dtype)} for {first.dtype} data", weights.dtype)


def weighted_interpolation_sum_reference(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    channels = max(x.size(1) for x in tensors)
    out = sum(
        weight * channel_interpolation(x.to(weights.dtype), channels)
        for x, weight in zip(tensors, weights, strict=True)
    )
    assert isinstance(out, Tensor)
    return out.to(tensors[0].dtype).contiguous(memory_format=layout_of(tensors[0]))


def weighted_interpolation_sum_backward_reference(
    grad_out: Tensor, tensors: Sequence[Tensor], weights: Tensor, output_mask: Sequence[bool]
) -> tuple[list[Tensor], Tensor]:
    g, dtype = grad_out.to(weights.dtype), weights.dtype
    grad_tensors, grad_weights = [], weights.new_empty(0)
    if output_mask[0]:
        for x, weight in zip(tensors, weights, strict=True):
            grad_x = g if x.size(1) == g.size(1) else _transposed(g, x.size(1))
            grad_tensors.append((weight * grad_x).to(x.dtype).contiguous(memory_format=layout_of(x)))
    if output_mask[1]:
        grad_weights = torch.stack([(g * channel_interpolation(x.to(dtype), g.size(1))).sum() for x in tensors])
    return grad_tensors, grad_weights


def _transposed(grad_out: Tensor, in_channels: int) -> Tensor:
    return torch.ops.tas_fast.channel_interpolation_backward.default(grad_out, in_channels)


@fake("weighted_interpolation_sum")
def _(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    _check(tensors, weights)
    first = tensors[0]
    channels = first.size(1)
    for x in tensors[1:]:
        channels = max(channels, x.size(1))
    shape = (first.size(0), channels, first.size(2), first.size(3))
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout_of(first))


@fake("weighted_interpolation_sum_backward")
def _(
    grad_out: Tensor, tensors: Sequence[Tensor], weights: Tensor, output_mask: Sequence[bool]
) -> tuple[list[Tensor], Tensor]:
    grads = []
    for x in tensors if output_mask[0] else ():
        grads.append(torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x)))
    return grads, torch.empty_like(weights) if output_mask[1] else weights.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple[Sequence[Tensor], Tensor], output: Tensor) -> None:
    tensors, weights = inputs
    ctx.save_for_backward(weights, *tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[list[Tensor | None], Tensor | None]:
    weights, *tensors = ctx.saved_tensors
    needs_tensors, needs_weights = ctx.needs_input_grad
    mask = [any(needs_tensors), needs_weights]
    grads, grad_weights = torch.ops.tas_fast.weighted_interpolation_sum_backward.default(
        grad_out, tensors, weights, mask
    )
    grad_tensors = list(grads) if mask[0] else [None] * len(tensors)
    return grad_tensors, grad_weights if needs_weights else None


differentiate("weighted_interpolation_sum", _backward, _setup_context)

implement("weighted_interpolation_sum", weighted_interpolation_sum_reference)
implement("weighted_interpolation_sum_backward", weighted_interpolation_sum_backward_reference)
