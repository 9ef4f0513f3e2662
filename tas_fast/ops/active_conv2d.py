"""Convolution of the active channels: a prefix of the filters applied to a prefix of their input channels.

    out = conv2d(x, weight[:out_channels, :c_in])            c_in = x.size(1)

    x [N, c_in, H, W]    weight [C_out, C_in / groups, kh, kw]    out [N, out_channels, H', W']

The gradient of the weight has the full size and is zero outside the active block. With groups > 1 whole groups are
active: the first c_in / weight.size(1) of them, with all their filters.

The operator is composite: slicing and torch's conv2d, so autograd, autocast and compilation are theirs and there is no
backward operator. cuDNN and oneDNN are the fast version for widths that the host knows.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tas_fast.ops._library import define, library, wrong

define(
    "active_conv2d(Tensor x, Tensor weight, SymInt out_channels, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation, SymInt groups) -> Tensor"
)

Pair = int | tuple[int, int]


def active_conv2d(
    x: Tensor,
    weight: Tensor,
    out_channels: int,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Return the convolution of `x` with the first `out_channels` filters of `weight`, each cut to the channels of `x`.

    Args:
        x: [N, c_in, H, W].
        weight: [C_out, C_in / groups, kh, kw], the full-size filters.
        out_channels: 1..C_out; with groups > 1 the filters of the active groups.
        stride, padding, dilation: one number or (vertical, horizontal).
        groups: groups of the full-size convolution.

    Returns:
        [N, out_channels, H', W'].

    Raises:
        ValueError: `x` or `weight` is not 4-dimensional, `weight` has too few channels, or a group is not whole.

    Example:
        >>> active_conv2d(torch.randn(1, 3, 8, 8), torch.randn(16, 8, 3, 3), 4, padding=1).shape
        torch.Size([1, 4, 8, 8])
    """
    _check(x, weight, out_channels, groups)
    pairs = (_pair(stride), _pair(padding), _pair(dilation))
    return torch.ops.tas_fast.active_conv2d.default(x, weight, out_channels, *pairs, groups)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


_wrong = partial(wrong, "active_conv2d")


def _check(x: Tensor, weight: Tensor, out_channels: int, groups: int) -> None:
    if x.dim() != 4:
        raise _wrong("x", "[N, C, H, W]", tuple(x.shape))
    if weight.dim() != 4:
        raise _wrong("weight", "[C_out, C_in / groups, kh, kw]", tuple(weight.shape))
    filters, depth = weight.size(0), weight.size(1)
    if groups < 1 or filters % groups != 0:
        raise _wrong("groups", f"a divisor of C_out = {filters}", groups)
    if not 1 <= out_channels <= filters:
        raise _wrong("out_channels", f"in 1..{filters}", out_channels)
    if not 1 <= x.size(1) <= depth * groups:
        raise _wrong("x", f"[N, C, H, W] with C in 1..{depth * groups}", tuple(x.shape))
    if groups > 1:
        if x.size(1) % depth != 0:
            raise _wrong("x", f"whole groups of {depth} channels", tuple(x.shape))
        active = x.size(1) // depth * (filters // groups)
        if out_channels != active:
            raise _wrong("out_channels", f"{active}, the filters of the active groups", out_channels)


def active_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    out_channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    if groups == 1:
        active, filters = 1, weight[:out_channels, : x.size(1)]
    else:
        active, filters = x.size(1) // weight.size(1), weight[:out_channels]
    return F.conv2d(x, filters, None, list(stride), list(padding), list(dilation), active)


library.impl("active_conv2d", active_conv2d_reference, "CompositeImplicitAutograd")
