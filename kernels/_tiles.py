"""What the kernels share: addresses of [pixels, channels] tiles, alignment matrices, block sizes."""
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs of a reduction. A constant, not the number of multiprocessors: results are the same on every device.
PROGRAMS = 512
# Channels of one block in kernels that multiply by a matrix. Wider ones read y less often, but spill or leave one block
# on a multiprocessor.
WIDEST_BLOCK = 64


@triton.jit
def offsets_of(pixel, channel, channels, area, LAST: tl.constexpr):
    """Offsets [P, C] of elements in an image batch: pixels are counted over the batch, `area` is pixels per image."""
    if LAST:
        offsets = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    else:
        image = (pixel // area).to(tl.int64) * channels * area
        offsets = image[:, None] + (pixel % area)[:, None] + channel.to(tl.int64)[None, :] * area
    return offsets


@triton.jit
def row_of(index, k, INDEXED: tl.constexpr):
    """The row of the tables that fragment k uses."""
    if INDEXED:
        row = tl.load(index + k).to(tl.int32)
    else:
        row = k
    return row


@triton.jit
def width_of(widths, index, k, INDEXED: tl.constexpr):
    return tl.load(widths + row_of(index, k, INDEXED)).to(tl.int32)


@triton.jit
def extremes(widths, index, K: tl.constexpr, INDEXED: tl.constexpr):
    """The narrowest and the widest sampled width."""
    narrowest = width_of(widths, index, 0, INDEXED)
    widest = narrowest
    for k in tl.static_range(1, K):
        width = width_of(widths, index, k, INDEXED)
        narrowest = tl.minimum(narrowest, width)
        widest = tl.maximum(widest, width)
    return narrowest, widest


@triton.jit
def taps(j, narrow, wide):
    """Rows j of the alignment narrow -> wide <= 2 narrow taps: first channel, share of each tap, whether there are two.

    Rows from `wide` on have share zero.
    """
    first = j * narrow // wide
    count = ((j + 1) * narrow + wide - 1) // wide - first
    return first, tl.where(j < wide, 1.0 / count.to(tl.float32), 0.0), count > 1


@triton.jit
def alignment(j, i, narrow, wide):
    """The tile [J, I] of the alignment matrix narrow -> wide; narrow <= wide, so a row has one or two entries."""
    first, share, double = taps(j, narrow, wide)
    distance = i[None, :] - first[:, None]
    return tl.where((distance == 0) | ((distance == 1) & double[:, None]), share[:, None], 0.0)


@triton.jit
def multiply(x, high, low, acc, SPLIT: tl.constexpr):
    """acc + x @ coefficients, at about float32 precision.

    bfloat16 data is exact in the multiplier, so its coefficients come as two summands of that type. Other data is split
    into three products of TF32.
    """
    if SPLIT:
        acc = tl.dot(x, high, acc)
        acc = tl.dot(x, low, acc)
    else:
        acc = tl.dot(x, high, acc, input_precision="tf32x3")
    return acc


@triton.jit
def store_split(table, offsets, size, value, SPLIT: tl.constexpr):
    """Store coefficients, if SPLIT as two summands whose tables lie `size` elements apart."""
    high = value.to(table.dtype.element_ty)
    tl.store(table + offsets, high)
    if SPLIT:
        tl.store(table + size + offsets, (value - high.to(tl.float32)).to(table.dtype.element_ty))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def is_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def stream_block(channels: int, last: bool, elements: int = 2048) -> tuple[int, int]:
    """Return pixels and channels of a tile that is read once, element by element: long along what is adjacent."""
    block = min(power_of_two(channels), 128 if last else 4)
    return elements // block, block


def matrix_block(channels: int) -> int:
    """Return channels of a block of a matrix product, 16 at least."""
    return min(max(power_of_two(channels), 16), WIDEST_BLOCK)


def chunks_of(pixels: int, block: int, others: int) -> tuple[int, int]:
    """Return how many chunks of pixels fill PROGRAMS with `others` programs each, and the tiles of `block` in one."""
    tiles = cdiv(pixels, block)
    per_chunk = cdiv(tiles, max(PROGRAMS // others, 1))
    return cdiv(tiles, per_chunk), per_chunk
