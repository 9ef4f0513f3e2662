"""Channel-wise interpolation: adaptive average pooling along the channel axis.

    out[n, j] = mean(x[n, first_j : stop_j])      first_j = floor(j c / C)    stop_j = ceil((j + 1) c / C)

    x [N, c, H, W]    out [N, C, H, W]    any c, C >= 1

As a matrix, out = A x per pixel: A is banded, its rows sum to one and hold one or two entries for c <= C, at most
ceil(c / C) + 1 otherwise. The gradient is A^T grad_out; nothing is saved but c. A fast version reads x and writes out
once. Source: TAS (Dong and Yang, NeurIPS 2019), where fragments of different widths are aligned before they are mixed.
"""

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

define("channel_interpolation(Tensor x, SymInt out_channels) -> Tensor")
define("channel_interpolation_backward(Tensor grad_out, SymInt in_channels) -> Tensor")


def channel_interpolation(x: Tensor, out_channels: int) -> Tensor:
    """Return `x` with its channels resampled to `out_channels`, each the mean of a window of input channels.

    With `out_channels == x.size(1)` the input itself is returned, not a copy. NaN and infinity stay in the windows that
    contain them. Sums are kept in float32 (float64 for float64).

    Args:
        x: [N, c, H, W].
        out_channels: C, at least 1; smaller, equal or larger than c.

    Returns:
        [N, C, H, W], dtype and memory format of `x`.

    Raises:
        ValueError: `x` is not a floating-point [N, c, H, W] with c >= 1, or `out_channels` is below 1.

    Example:
        >>> channel_interpolation(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), 3).flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    _check("x", x, "out_channels", out_channels)
    if out_channels == x.size(1):
        return x
    return torch.ops.tas_fast.channel_interpolation.default(x, out_channels)


_wrong = partial(wrong, "channel_interpolation")


def _check(name: str, tensor: Tensor, size_name: str, channels: int) -> None:
    if tensor.dim() != 4 or tensor.size(1) < 1 or not tensor.is_floating_point():
        raise _wrong(name, "floating-point [N, C, H, W] with C >= 1", described(tensor))
    if channels < 1:
        raise _wrong(size_name, "at least 1", channels)


def windows(rows: Tensor, in_channels: Tensor | int, out_channels: Tensor | int) -> tuple[Tensor, Tensor]:
    """Return for output channels `rows` the first input channel of the mean and the one after its last."""
    first = rows * in_channels // out_channels
    stop = ((rows + 1) * in_channels + out_channels - 1) // out_channels
    return first, stop


def channel_interpolation_reference(x: Tensor, out_channels: int) -> Tensor:
    first, stop, longest = _all_windows(x.size(1), out_channels, x.device)
    data = x.to(accumulation_dtype(x.dtype))
    total = torch.zeros_like(data[:, :1]).repeat(1, out_channels, 1, 1)
    for offset in range(longest):
        channel = first + offset
        outside = (channel >= stop)[:, None, None]
        total += data.index_select(1, channel.clamp(max=x.size(1) - 1)).masked_fill_(outside, 0)
    return (total / (stop - first)[:, None, None]).to(x.dtype).contiguous(memory_format=layout_of(x))


def channel_interpolation_backward_reference(grad_out: Tensor, in_channels: int) -> Tensor:
    first, stop, longest = _all_windows(in_channels, grad_out.size(1), grad_out.device)
    share = grad_out.to(accumulation_dtype(grad_out.dtype)) / (stop - first)[:, None, None]
    grad_x = torch.zeros_like(share[:, :1]).repeat(1, in_channels, 1, 1)
    for offset in range(longest):
        channel = first + offset
        outside = (channel >= stop)[:, None, None]
        grad_x.index_add_(1, channel.clamp(max=in_channels - 1), share.masked_fill(outside, 0))
    return grad_x.to(grad_out.dtype).contiguous(memory_format=layout_of(grad_out))


def _all_windows(in_channels: int, out_channels: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    first, stop = windows(torch.arange(out_channels, device=device), in_channels, out_channels)
    return first, stop, min(in_channels, -(-in_channels // out_channels) + 1)


@fake("channel_interpolation")
def _(x: Tensor, out_channels: int) -> Tensor:
    _check("x", x, "out_channels", out_channels)
    return _empty_like(x, out_channels)


@fake("channel_interpolation_backward")
def _(grad_out: Tensor, in_channels: int) -> Tensor:
    _check("grad_out", grad_out, "in_channels", in_channels)
    return _empty_like(grad_out, in_channels)


def _empty_like(x: Tensor, channels: int) -> Tensor:
    shape = (x.size(0), channels, x.size(2), x.size(3))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))


def _save_in_channels(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.channels = inputs[0].size(1)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:
    return torch.ops.tas_fast.channel_interpolation_backward.default(grad_out, ctx.channels), None


def _double_backward(ctx: Any, grad_grad_x: Tensor) -> tuple[Tensor, None]:
    return torch.ops.tas_fast.channel_interpolation.default(grad_grad_x, ctx.channels), None


differentiate("channel_interpolation", _backward, _save_in_channels)
differentiate("channel_interpolation_backward", _double_backward, _save_in_channels)

implement("channel_interpolation", channel_interpolation_reference)
implement("channel_interpolation_backward", channel_interpolation_backward_reference)
