"""Forward kernels of `fragment_aggregate`: statistics, the combined coefficients, and one pass that applies them.

Names as in tas_fast/ops/fragment_aggregate.py: y channels i, result channels j, R = `read` channels of y.
"""
# mypy: allow-untyped-defs

import triton
import triton.language as tl

from tas_fast.kernels._tiles import alignment, extremes, multiply, offsets_of, row_of, store_split, width_of


@triton.jit
def statistics(
    y, partial, pixels, channels, area, read, tiles,
    LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial [chunks, 2, R]: mean and sum of squared deviations of a chunk of pixels. Grid: chunks, channel blocks."""
    chunk = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    lane = chunk * tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    mean = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    spread = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for t in range(tiles):
        pixel = lane + t * BLOCK_P
        inside = (pixel < pixels)[:, None] & (i < read)[None, :]
        x = tl.load(y + offsets_of(pixel, i, channels, area, LAST), mask=inside, other=0.0).to(tl.float32)
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / (t + 1))
        spread += delta * (x - mean)
    # Lane r has seen every BLOCK_P-th pixel; lanes are merged by their counts (Chan et al. 1983).
    count = tl.minimum((tl.maximum(pixels - lane, 0) + BLOCK_P - 1) // BLOCK_P, tiles).to(tl.float32)[:, None]
    total = tl.sum(count)
    centre = tl.sum(count * mean, 0) / total
    deviation = mean - centre[None, :]
    spread = tl.sum(spread + count * deviation * deviation, 0)
    tl.store(partial + 2 * chunk * read + i, centre, mask=i < read)
    tl.store(partial + (2 * chunk + 1) * read + i, spread, mask=i < read)


@triton.jit
def merged(partial, i, pixels, per_chunk, chunks, read, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr):
    """Mean and sum of squared deviations [I] over all chunks, in a fixed order."""
    inside = (i < read)[None, :]
    origin = tl.load(partial + i, mask=i < read, other=0.0)
    shift = tl.zeros([BLOCK_N, BLOCK_I], tl.float32)
    for start in range(0, chunks, BLOCK_N):
        chunk = start + tl.arange(0, BLOCK_N)
        mask = (chunk < chunks)[:, None] & inside
        count = tl.minimum(pixels - chunk * per_chunk, per_chunk).to(tl.float32)[:, None]
        mean = tl.load(partial + 2 * chunk[:, None] * read + i[None, :], mask=mask, other=0.0)
        shift += tl.where(mask, count * (mean - origin[None, :]), 0.0)
    mean = origin + tl.sum(shift, 0) / pixels
    spread = tl.zeros([BLOCK_N, BLOCK_I], tl.float32)
    for start in range(0, chunks, BLOCK_N):
        chunk = start + tl.arange(0, BLOCK_N)
        mask = (chunk < chunks)[:, None] & inside
        count = tl.minimum(pixels - chunk * per_chunk, per_chunk).to(tl.float32)[:, None]
        pointers = partial + 2 * chunk[:, None] * read + i[None, :]
        deviation = tl.load(pointers, mask=mask, other=0.0) - mean[None, :]
        within = tl.load(pointers + read, mask=mask, other=0.0)
        spread += tl.where(mask, within + count * deviation * deviation, 0.0)
    return mean, tl.sum(spread, 0)


@triton.jit
def update_running(
    running_mean, running_var, mean, var, widths, index, i, columns, momentum,
    K: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    """Move the statistics of every sampled row once, by as much as its mentions in `index` together would."""
    for k in range(K):
        row = row_of(index, k, INDEXED)
        width = width_of(widths, index, k, INDEXED)
        keep = 1.0 - momentum
        if INDEXED:
            for other in range(K):
                if other != k:
                    same = row_of(index, other, INDEXED) == row
                    if other < k:
                        width = tl.where(same, 0, width)  # done at its first mention
                    else:
                        keep = tl.where(same, keep * (1.0 - momentum), keep)
        pointers = row * columns + i
        old_mean = tl.load(running_mean + pointers, mask=i < width, other=0.0)
        old_var = tl.load(running_var + pointers, mask=i < width, other=0.0)
        tl.store(running_mean + pointers, mean + keep * (old_mean - mean), mask=i < width)
        tl.store(running_var + pointers, var + keep * (old_var - var), mask=i < width)


@triton.jit
def prepare(
    partial, widths, index, probs, weight, bias, running_mean, running_var, mean_out, rstd_out, table, offset,
    pixels, per_chunk, chunks, read, columns, table_rows, table_columns, momentum, eps,
    K: tl.constexpr, TRAINING: tl.constexpr, UPDATE: tl.constexpr, INDEXED: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Statistics to coefficients. Grid: blocks of y channels.

    K > 1: table [1 or 2, table_rows (j), table_columns (i)], offset [blocks, table_rows], to be summed over blocks.
    K = 1: table and offset [R]. out_j = sum_i table_ji x_i + offset_j, x = y - mean (its first row), or y if SPLIT.
    """
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = i < read
    if TRAINING:
        mean, spread = merged(partial, i, pixels, per_chunk, chunks, read, BLOCK_N, BLOCK_I)
        rstd = 1.0 / tl.sqrt_rn(spread / pixels + eps)
        tl.store(mean_out + i, mean, mask=inside)
        tl.store(rstd_out + i, rstd, mask=inside)
        if UPDATE:
            var = spread / tl.maximum(pixels - 1, 1)
            update_running(running_mean, running_var, mean, var, widths, index, i, columns, momentum, K, INDEXED)
        reference = mean
    else:
        for k in range(K):
            pointers = row_of(index, k, INDEXED) * columns + i
            var = tl.load(running_var + pointers, mask=inside, other=1.0)
            tl.store(mean_out + k * read + i, tl.load(running_mean + pointers, mask=inside, other=0.0), mask=inside)
            tl.store(rstd_out + k * read + i, 1.0 / tl.sqrt_rn(var + eps), mask=inside)
        reference = tl.load(running_mean + row_of(index, 0, INDEXED) * columns + i, mask=inside, other=0.0)
    if SPLIT:
        reference = tl.zeros([BLOCK_I], tl.float32)

    _narrowest, widest = extremes(widths, index, K, INDEXED)
    if K == 1:
        pointers = row_of(index, 0, INDEXED) * columns + i
        if TRAINING:
            factor = rstd
        else:
            factor = 1.0 / tl.sqrt_rn(tl.load(running_var + pointers, mask=inside, other=1.0) + eps)
        prob = tl.load(probs)
        gamma = tl.load(weight + pointers, mask=inside, other=0.0)
        beta = tl.load(bias + pointers, mask=inside, other=0.0)
        tl.store(table + i, tl.where(i < widest, prob * gamma * factor, 0.0), mask=inside)
        tl.store(offset + i, tl.where(i < widest, prob * beta, 0.0), mask=inside)
    else:
        for start in range(0, table_rows, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            matrix = tl.zeros([BLOCK_J, BLOCK_I], tl.float32)
            shift = tl.zeros([BLOCK_J, BLOCK_I], tl.float32)
            for k in range(K):
                pointers = row_of(index, k, INDEXED) * columns + i
                factor = tl.load(weight + pointers, mask=inside, other=0.0)
                if TRAINING:
                    factor *= rstd
                    distance = mean - reference
                else:
                    factor *= 1.0 / tl.sqrt_rn(tl.load(running_var + pointers, mask=inside, other=1.0) + eps)
                    distance = tl.load(running_mean + pointers, mask=inside, other=0.0) - reference
                beta = tl.load(bias + pointers, mask=inside, other=0.0)
                width = width_of(widths, index, k, INDEXED)
                aligned = tl.load(probs + k) * alignment(j, i, width, widest)
                matrix += tl.where(aligned != 0, aligned * factor[None, :], 0.0)
                shift += tl.where(aligned != 0, aligned * (beta - factor * distance)[None, :], 0.0)
            store_split(table, j[:, None] * table_columns + i[None, :], table_rows * table_columns, matrix, SPLIT)
            tl.store(offset + tl.program_id(0) * table_rows + j, tl.sum(shift, 1))


@triton.jit
def mix(
    y, residual, out, mean, table, offset, widths, index,
    pixels, area, channels, read, residual_channels, result_channels, table_rows, table_columns, blocks, tiles,
    K: tl.constexpr, INDEXED: tl.constexpr, SPLIT: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    LAST: tl.constexpr, SINGLE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = relu(table x + offset + residual). Grid: blocks of result channels, groups of `tiles` pixel tiles.

    The widths bound the loop over blocks of y channels. SINGLE: one block holds all of them, and its part of the table
    stays on the multiprocessor.
    """
    first = tl.program_id(0) * BLOCK_C
    j = first + tl.arange(0, BLOCK_C)
    narrowest, widest = extremes(widths, index, K, INDEXED)
    begin = first * narrowest // widest // BLOCK_C * BLOCK_C
    end = tl.where(first < widest, tl.minimum(tl.minimum(first + BLOCK_C, widest), read), 0)
    bias = tl.zeros([BLOCK_C], tl.float32)
    for block in range(blocks):
        bias += tl.load(offset + block * table_rows + j, mask=j < table_rows, other=0.0)
    size = table_rows * table_columns if SPLIT else 0
    i = tl.arange(0, BLOCK_C)
    if SINGLE:
        pointers = table + j[None, :] * table_columns + i[:, None]
        high = tl.load(pointers)
        low = tl.load(pointers + size)
    for t in range(tiles):
        pixel = (tl.program_id(1) * tiles + t) * BLOCK_P + tl.arange(0, BLOCK_P)
        acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        if SINGLE:
            x = centred(y, mean, pixel, i, pixels, area, channels, read, SPLIT, LAST)
            acc = multiply(x, high, low, acc, SPLIT)
        else:
            for start in range(begin, end, BLOCK_C):
                pointers = table + j[None, :] * table_columns + (start + i)[:, None]
                x = centred(y, mean, pixel, start + i, pixels, area, channels, read, SPLIT, LAST)
                acc = multiply(x, tl.load(pointers), tl.load(pointers + size), acc, SPLIT)
        acc += bias[None, :]
        finish(acc, residual, out, pixel, j, pixels, area, residual_channels, result_channels, RESIDUAL, RELU, LAST)


@triton.jit
def centred(y, mean, pixel, i, pixels, area, channels, read, SPLIT: tl.constexpr, LAST: tl.constexpr):
    """The tile x [P, I]: y itself if SPLIT, else y - mean in float32. Outside the batch and from R on: finite."""
    mask = (pixel < pixels)[:, None] & (i < read)[None, :]
    x = tl.load(y + offsets_of(pixel, i, channels, area, LAST), mask=mask, other=0.0)
    if not SPLIT:
        x = x.to(tl.float32) - tl.load(mean + i, mask=i < read, other=0.0)[None, :]
    return x


@triton.jit
def finish(
    acc, residual, out, pixel, j, pixels, area, residual_channels, result_channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Add the residual, rectify, store. NaN stays NaN."""
    inside = (pixel < pixels)[:, None]
    if RESIDUAL:
        pointers = residual + offsets_of(pixel, j, residual_channels, area, LAST)
        acc += tl.load(pointers, mask=inside & (j < residual_channels)[None, :], other=0.0).to(tl.float32)
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    pointers = out + offsets_of(pixel, j, result_channels, area, LAST)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=inside & (j < result_channels)[None, :])


@triton.jit
def scale(
    y, residual, out, mean, table, offset, pixels, area, channels, read, residual_channels, result_channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`mix` of one fragment: the table is a diagonal. Grid: pixel tiles, blocks of result channels."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    j = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x = centred(y, mean, pixel, j, pixels, area, channels, read, False, LAST)
    factor = tl.load(table + j, mask=j < read, other=0.0)
    acc = x * factor[None, :] + tl.load(offset + j, mask=j < read, other=0.0)[None, :]
    finish(acc, residual, out, pixel, j, pixels, area, residual_channels, result_channels, RESIDUAL, RELU, LAST)
