"""Channel interpolation on CUDA devices: one gathering kernel for the operator and its transpose."""
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from tas_fast.kernels._tiles import cdiv, is_last, offsets_of, stream_block


@triton.jit
def window(row, source_channels, channels):
    """First source channel of a row, and how many there are."""
    first = (row.to(tl.int64) * source_channels // channels).to(tl.int32)
    stop = (((row + 1).to(tl.int64) * source_channels + channels - 1) // channels).to(tl.int32)
    return first, stop - first


@triton.jit
def gathered(
    x, pixel, row, pixels, area, source_channels, channels, longest, TRANSPOSED: tl.constexpr, LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The tile [P, rows] of A x, or of A^T x with A: channels -> source_channels if TRANSPOSED; in float32."""
    first, count = window(row, source_channels, channels)
    inside = (pixel < pixels)[:, None] & (row < channels)[None, :]
    acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(longest):
        source = first + step
        if TRANSPOSED:
            _, length = window(source, channels, source_channels)
            share = 1.0 / length.to(tl.float32)
        else:
            share = 1.0 / count.to(tl.float32)
        mask = inside & (step < count)[None, :]
        value = tl.load(x + offsets_of(pixel, source, source_channels, area, LAST), mask=mask, other=0.0)
        acc += tl.where(mask, value.to(tl.float32) * share[None, :], 0.0)
    return acc


@triton.jit
def interpolate(
    x, out, pixels, area, source_channels, channels, longest,
    TRANSPOSED: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = A x or A^T x. Grid: pixel tiles, blocks of result channels."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = gathered(
        x, pixel, row, pixels, area, source_channels, channels, longest, TRANSPOSED, LAST, BLOCK_P, BLOCK_C
    )  # fmt: skip
    mask = (pixel < pixels)[:, None] & (row < channels)[None, :]
    tl.store(out + offsets_of(pixel, row, channels, area, LAST), acc.to(out.dtype.element_ty), mask=mask)


def longest_window(source_channels: int, channels: int) -> int:
    """Return an upper bound of the sources of one row that is as tight as the widths allow."""
    if source_channels % channels == 0:
        return source_channels // channels
    if channels % source_channels == 0:
        return 1
    return min(source_channels, cdiv(source_channels, channels) + 1)


def channel_interpolation(x: Tensor, out_channels: int) -> Tensor:
    """Return `x` [N, c, H, W] with its channels resampled; float32, bfloat16 or float16, not empty."""
    return _launch(x, out_channels, transposed=False)


def channel_interpolation_backward(grad_out: Tensor, in_channels: int) -> Tensor:
    """Return the gradient of the operator's input with `in_channels` channels."""
    return _launch(grad_out, in_channels, transposed=True)


def _launch(x: Tensor, channels: int, transposed: bool) -> Tensor:
    last = is_last(x)
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    n, source_channels, height, width = x.shape
    out = torch.empty((n, channels, height, width), dtype=x.dtype, device=x.device, memory_format=layout)
    pixels, lanes = stream_block(channels, last)
    interpolate[(cdiv(n * height * width, pixels), cdiv(channels, lanes))](
        x, out, n * height * width, height * width, source_channels, channels,
        longest_window(source_channels, channels),
        TRANSPOSED=transposed, LAST=last, BLOCK_P=pixels, BLOCK_C=lanes, num_warps=4,
    )  # fmt: skip
    return out
