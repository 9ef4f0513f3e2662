"""Depth aggregation on CUDA devices: up to eight inputs are read in one pass; the backward runs once per input."""
# mypy: allow-untyped-defs

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tas_fast.kernels._backward import combine
from tas_fast.kernels._tiles import cdiv, chunks_of, is_last, offsets_of, stream_block
from tas_fast.kernels.channel_interpolation import gathered, longest_window

INPUTS = 8  # of one launch


@triton.jit
def term(
    acc, x, weight, source_channels, longest, pixel, row, pixels, area, channels,
    LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    if x is not None:
        acc += tl.load(weight) * gathered(
            x, pixel, row, pixels, area, source_channels, channels, longest, False, LAST, BLOCK_P, BLOCK_C
        )  # fmt: skip
    return acc


@triton.jit
def weighted_sum(
    x0, x1, x2, x3, x4, x5, x6, x7, c0, c1, c2, c3, c4, c5, c6, c7, l0, l1, l2, l3, l4, l5, l6, l7,
    weights, previous, out, pixels, area, channels,
    LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = previous + sum_d weights_d A_d x_d; without inputs that are None. Grid: pixel tiles, channel blocks."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    offsets = offsets_of(pixel, row, channels, area, LAST)
    mask = (pixel < pixels)[:, None] & (row < channels)[None, :]
    acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    if previous is not None:
        acc += tl.load(previous + offsets, mask=mask, other=0.0)
    acc = term(acc, x0, weights, c0, l0, pixel, row, pixels, area, channels, LAST, BLOCK_P, BLOCK_C)
    acc = term(acc, x1, weights + 1, c1, l1, pixel, row, pixels, area, channels, LAST, BLOCK_P, BLOCK_C)
    acc = term(acc, x2, weights + 2, c2, l2, pixel, row, pixels, area, channels, LAST, BLOCK_P, BLOCK_C)
    acc = term(acc, x3, weights + 3, c3, l3, pixel, row, pixels, area, channels, LAST, BLOCK_P, BLOCK_C)
    acc = term(acc, x4, weights + 4, c4, l4, pixel, row, pixels, area, channels, LAST, BLOCK_P, BLOCK_C)
    acc = term(acc, x5, weights + 5, c5, l5, pixel, row, pixels, area, channels, LAST, BLOCK_P, BLOCK_C)
    acc = term(acc, x6, weights + 6, c6, l6, pixel, row, pixels, area, channels, LAST, BLOCK_P, BLOCK_C)
    acc = term(acc, x7, weights + 7, c7, l7, pixel, row, pixels, area, channels, LAST, BLOCK_P, BLOCK_C)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def weighted_gradient(
    grad_out, x, weight, grad_x, sums, pixels, area, source_channels, channels, longest, tiles,
    GRAD_X: tl.constexpr, GRAD_WEIGHT: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad_x = weight A^T grad_out, sums [programs] = parts of <x, A^T grad_out>. Grid: chunks, channel blocks of x."""
    row = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    scale = tl.load(weight)
    for t in range(tiles):
        pixel = (tl.program_id(0) * tiles + t) * BLOCK_P + tl.arange(0, BLOCK_P)
        g = gathered(
            grad_out, pixel, row, pixels, area, source_channels, channels, longest, True, LAST, BLOCK_P, BLOCK_C
        )  # fmt: skip
        offsets = offsets_of(pixel, row, channels, area, LAST)
        mask = (pixel < pixels)[:, None] & (row < channels)[None, :]
        if GRAD_X:
            tl.store(grad_x + offsets, (scale * g).to(grad_x.dtype.element_ty), mask=mask)
        if GRAD_WEIGHT:
            product += tl.where(mask, g * tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32), 0.0)
    if GRAD_WEIGHT:
        tl.store(sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(product))


def weighted_interpolation_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the weighted sum of interpolated `tensors`; float32, bfloat16 or float16, not empty."""
    first = tensors[0]
    last = is_last(first)
    layout = torch.channels_last if last else torch.contiguous_format
    tensors, weights = [x.contiguous(memory_format=layout) for x in tensors], weights.contiguous()
    _check_devices(tensors, weights)
    channels = max(x.size(1) for x in tensors)
    shape = (first.size(0), channels, *first.shape[2:])
    area, total = shape[2] * shape[3], shape[0] * shape[2] * shape[3]
    pixels, lanes = stream_block(channels, last)
    previous = None
    for start in range(0, len(tensors), INPUTS):
        group = tensors[start : start + INPUTS]
        absent = [None] * (INPUTS - len(group))
        widths = [x.size(1) for x in group]
        longest = [longest_window(width, channels) for width in widths]
        # A sum that is continued by another launch is kept in float32.
        dtype = first.dtype if start + INPUTS >= len(tensors) else torch.float32
        out = torch.empty(shape, dtype=dtype, device=first.device, memory_format=layout)
        weighted_sum[(cdiv(total, pixels), cdiv(channels, lanes))](
            *group, *absent, *widths, *absent, *longest, *absent,
            weights[start:], previous, out, total, area, channels,
            LAST=last, BLOCK_P=pixels, BLOCK_C=lanes, num_warps=4,
        )  # fmt: skip
        previous = out
    return out


def weighted_interpolation_sum_backward(
    grad_out: Tensor, tensors: Sequence[Tensor], weights: Tensor, output_mask: Sequence[bool]
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients as the operator's schema says; float32, bfloat16 or float16, not empty."""
    _check_devices([grad_out, *tensors], weights)
    needs_tensors, needs_weights = output_mask
    weights = weights.contiguous()
    grads, sums = [], []
    for d, original in enumerate(tensors):
        last = is_last(original)
        layout = torch.channels_last if last else torch.contiguous_format
        x, g = original.contiguous(memory_format=layout), grad_out.contiguous(memory_format=layout)
        channels, total = x.size(1), x.size(0) * x.size(2) * x.size(3)
        pixels, lanes = stream_block(channels, last)
        blocks = cdiv(channels, lanes)
        chunks, tiles = chunks_of(total, pixels, blocks)
        grad_x = torch.empty_like(x, memory_format=layout) if needs_tensors else None
        parts = weights.new_empty(chunks * blocks) if needs_weights else None
        weighted_gradient[(chunks, blocks)](
            g, x, weights[d:], grad_x, parts, total, x.size(2) * x.size(3), g.size(1), channels,
            longest_window(g.size(1), channels), tiles,
            GRAD_X=needs_tensors, GRAD_WEIGHT=needs_weights, LAST=last, BLOCK_P=pixels, BLOCK_C=lanes, num_warps=4,
        )  # fmt: skip
        if grad_x is not None:
            grads.append(grad_x)
        sums.append(parts)
    grad_weights = weights.new_empty(len(tensors) if needs_weights else 0)
    for d, parts in enumerate(sums):
        if parts is not None:
            combine[(1,)](parts, grad_weights[d:], parts.numel(), 1, BLOCK_N=256, BLOCK_C=1)
    return grads, grad_weights


def _check_devices(tensors: Sequence[Tensor], weights: Tensor) -> None:
    for name, x in [("weights", weights), *(("tensors", x) for x in tensors)]:
        if x.device != tensors[0].device:
            message = f"must be on {tensors[0].device} like the first tensor, got {x.device}"
            raise ValueError(f"weighted_interpolation_sum: {name} {message}")
