"""Backward kernels of `fragment_aggregate`: sums of products, gradients and coefficients, one pass for grad_y.

Names as in tas_fast/ops/fragment_aggregate.py. A row j of A_k has its entries at first_k(j) and the next channel, so
only these products are kept: sums [2 K + 1, J] holds g_j x_first and g_j x_next for every k, then g_j. K = 1: [2, J].
"""
# mypy: allow-untyped-defs

import triton
import triton.language as tl

from tas_fast.kernels._forward import centred
from tas_fast.kernels._tiles import extremes, multiply, offsets_of, row_of, store_split, taps, width_of


@triton.jit
def masked_gradient(grad_out, out, pixel, j, count, pixels, area, channels, RELU: tl.constexpr, LAST: tl.constexpr):
    """The tile g [P, J] of the first `count` channels: grad_out, where the result was rectified 0."""
    mask = (pixel < pixels)[:, None] & (j < count)[None, :]
    offsets = offsets_of(pixel, j, channels, area, LAST)
    g = tl.load(grad_out + offsets, mask=mask, other=0.0)
    if RELU:
        value = tl.load(out + offsets, mask=mask, other=0.0).to(tl.float32)
        g = tl.where(value <= 0, tl.zeros_like(g), g)
    return g


@triton.jit
def products(
    grad_out, out, y, mean, sums, widths, index,
    pixels, area, channels, read, out_channels, result_channels, rows, tiles,
    K: tl.constexpr, INDEXED: tl.constexpr, SPLIT: tl.constexpr, RELU: tl.constexpr, LAST: tl.constexpr,
    BLOCKS_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sums [chunks, blocks of i, 2 K + 1, rows (j)]. Grid: blocks of j times blocks of i, chunks of `tiles` tiles.

    Blocks without an entry of any A_k loop zero times. sum g_j comes from the diagonal blocks, which all have entries.
    """
    block_j = tl.program_id(0) // BLOCKS_I
    block_i = tl.program_id(0) % BLOCKS_I
    chunk = tl.program_id(1)
    j = block_j * BLOCK_C + tl.arange(0, BLOCK_C)
    i = block_i * BLOCK_C + tl.arange(0, BLOCK_C)
    narrowest, widest = extremes(widths, index, K, INDEXED)
    lowest = block_j * BLOCK_C * narrowest // widest
    reached = (block_i <= block_j) & (block_j * BLOCK_C < widest) & ((block_i + 1) * BLOCK_C > lowest)
    acc = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for t in range(tl.where(reached, tiles, 0)):
        pixel = (chunk * tiles + t) * BLOCK_P + tl.arange(0, BLOCK_P)
        g = masked_gradient(grad_out, out, pixel, j, out_channels, pixels, area, result_channels, RELU, LAST)
        x = centred(y, mean, pixel, i, pixels, area, channels, read, SPLIT, LAST)
        total += g.to(tl.float32)
        if SPLIT:
            acc = tl.dot(tl.trans(g), x, acc)
        else:
            acc = tl.dot(tl.trans(g.to(tl.float32)), x, acc, input_precision="tf32x3")
    base = sums + (chunk * BLOCKS_I + block_i).to(tl.int64) * (2 * K + 1) * rows + j
    for k in range(K):
        first, _share, _double = taps(j, width_of(widths, index, k, INDEXED), widest)
        distance = i[None, :] - first[:, None]
        tl.store(base + 2 * k * rows, tl.sum(tl.where(distance == 0, acc, 0.0), 1))
        tl.store(base + (2 * k + 1) * rows, tl.sum(tl.where(distance == 1, acc, 0.0), 1))
    tl.store(base + 2 * K * rows, tl.where(block_i == block_j, tl.sum(total, 0), 0.0))


@triton.jit
def diagonal_products(
    grad_out, out, y, mean, sums, pixels, area, channels, read, result_channels, rows, tiles,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`products` of one fragment: sums [chunks, 2, rows]. Grid: chunks, blocks of channels."""
    chunk = tl.program_id(0)
    j = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for t in range(tiles):
        pixel = (chunk * tiles + t) * BLOCK_P + tl.arange(0, BLOCK_P)
        g = masked_gradient(grad_out, out, pixel, j, read, pixels, area, result_channels, RELU, LAST).to(tl.float32)
        x = centred(y, mean, pixel, j, pixels, area, channels, read, False, LAST)
        total += g
        product += g * x
    base = sums + chunk.to(tl.int64) * 2 * rows + j
    tl.store(base, tl.sum(product, 0), mask=j < rows)
    tl.store(base + rows, tl.sum(total, 0), mask=j < rows)


@triton.jit
def combine(sums, combined, parts, size, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """combined [size]: the sum of `parts` rows of `size`, in a fixed order. Grid: blocks of columns."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, parts, BLOCK_N):
        part = start + tl.arange(0, BLOCK_N)
        mask = (part < parts)[:, None] & (column < size)[None, :]
        acc += tl.load(sums + part.to(tl.int64)[:, None] * size + column[None, :], mask=mask, other=0.0)
    tl.store(combined + column, tl.sum(acc, 0), mask=column < size)


@triton.jit
def column_sums(
    sums, mean, rstd, widths, index, k, i, widest, read, rows,
    K: tl.constexpr, INDEXED: tl.constexpr, TRAINING: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """A_k^T G and the column sums of A_k X_k at channels i [I] for fragment k."""
    TAPS: tl.constexpr = 1 if K == 1 else 2
    by_bias = tl.zeros([BLOCK_I], tl.float32)
    by_weight = tl.zeros([BLOCK_I], tl.float32)
    width = width_of(widths, index, k, INDEXED)
    for start in range(0, widest, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        first, share, double = taps(j, width, widest)
        distance = i[None, :] - first[:, None]
        total = tl.load(sums + TAPS * K * rows + j, mask=j < rows, other=0.0)
        product = tl.load(sums + TAPS * k * rows + j, mask=j < rows, other=0.0)
        here = (distance == 0) & (share > 0)[:, None]
        by_bias += tl.sum(tl.where(here, (share * total)[:, None], 0.0), 0)
        by_weight += tl.sum(tl.where(here, (share * product)[:, None], 0.0), 0)
        if TAPS == 2:
            product = tl.load(sums + (TAPS * k + 1) * rows + j, mask=j < rows, other=0.0)
            here = (distance == 1) & (double & (share > 0))[:, None]
            by_bias += tl.sum(tl.where(here, (share * total)[:, None], 0.0), 0)
            by_weight += tl.sum(tl.where(here, (share * product)[:, None], 0.0), 0)
    mine = 0 if TRAINING else k
    inside = i < tl.minimum(width, read)
    origin = tl.load(mean + mine * read + i, mask=inside, other=0.0)
    if not SPLIT:
        origin -= tl.load(mean + i, mask=inside, other=0.0)
    scale = tl.load(rstd + mine * read + i, mask=inside, other=0.0)
    return by_bias, scale * (by_weight - origin * by_bias), scale


@triton.jit
def gradients(
    sums, mean, rstd, widths, index, probs, weight, bias,
    grad_probs, grad_weight, grad_bias, table, level, slope,
    pixels, read, columns, rows, table_rows, table_columns, table_blocks, n,
    K: tl.constexpr, INDEXED: tl.constexpr, TRAINING: tl.constexpr, SPLIT: tl.constexpr,
    PROBS: tl.constexpr, TABLES: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Sums to gradients and coefficients of grad_y. Grid: blocks of i, n + 2 roles.

    Role r < n: row r of grad_weight and grad_bias. Role n: with x = y - mean, or x = y if SPLIT, and s the reference,
    grad_y_i = sum_j table_ji g_j - level_i - slope_i (y_i - s_i); the table lies [i, j]. Role n + 1: grad_probs.
    """
    block = tl.program_id(0)
    role = tl.program_id(1)
    i = block * BLOCK_I + tl.arange(0, BLOCK_I)
    _narrowest, widest = extremes(widths, index, K, INDEXED)
    if role < n:
        if TABLES:
            to_weight = tl.zeros([BLOCK_I], tl.float32)
            to_bias = tl.zeros([BLOCK_I], tl.float32)
            for k in range(K):
                if row_of(index, k, INDEXED) == role:
                    by_bias, by_weight, _scale = column_sums(
                        sums, mean, rstd, widths, index, k, i, widest, read, rows,
                        K, INDEXED, TRAINING, SPLIT, BLOCK_J, BLOCK_I,
                    )  # fmt: skip
                    prob = tl.load(probs + k)
                    to_weight += prob * by_weight
                    to_bias += prob * by_bias
            tl.store(grad_weight + role * columns + i, to_weight, mask=i < columns)
            tl.store(grad_bias + role * columns + i, to_bias, mask=i < columns)
    elif role == n:
        if block < table_blocks:
            constant = tl.zeros([BLOCK_I], tl.float32)
            linear = tl.zeros([BLOCK_I], tl.float32)
            for k in range(K):
                by_bias, by_weight, factor = column_sums(
                    sums, mean, rstd, widths, index, k, i, widest, read, rows,
                    K, INDEXED, TRAINING, SPLIT, BLOCK_J, BLOCK_I,
                )  # fmt: skip
                pointers = row_of(index, k, INDEXED) * columns + i
                factor *= tl.load(probs + k) * tl.load(weight + pointers, mask=i < read, other=0.0)
                constant += factor * by_bias
                linear += factor * by_weight * tl.load(rstd + i, mask=i < read, other=0.0)
                if K == 1:
                    tl.store(table + i, tl.where(i < widest, factor, 0.0), mask=i < read)
            if TRAINING:
                tl.store(level + i, tl.where(i < widest, constant / pixels, 0.0), mask=i < read)
                tl.store(slope + i, tl.where(i < widest, linear / pixels, 0.0), mask=i < read)
            if K > 1:
                transposed(
                    rstd, widths, index, probs, weight, table, i, widest, read, columns, table_rows, table_columns,
                    K, INDEXED, TRAINING, SPLIT, BLOCK_J, BLOCK_I,
                )  # fmt: skip
    elif block == 0:  # noqa: SIM102  the compiler knows one condition, the device the other
        if PROBS:
            for k in range(K):
                total = tl.zeros([BLOCK_I], tl.float32)
                row = row_of(index, k, INDEXED)
                for start in range(0, widest, BLOCK_I):
                    channel = start + tl.arange(0, BLOCK_I)
                    by_bias, by_weight, _scale = column_sums(
                        sums, mean, rstd, widths, index, k, channel, widest, read, rows,
                        K, INDEXED, TRAINING, SPLIT, BLOCK_J, BLOCK_I,
                    )  # fmt: skip
                    inside = channel < read
                    total += tl.load(weight + row * columns + channel, mask=inside, other=0.0) * by_weight
                    total += tl.load(bias + row * columns + channel, mask=inside, other=0.0) * by_bias
                tl.store(grad_probs + k, tl.sum(total))


@triton.jit
def transposed(
    rstd, widths, index, probs, weight, table, i, widest, read, columns, table_rows, table_columns,
    K: tl.constexpr, INDEXED: tl.constexpr, TRAINING: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write rows i of the table [table_columns (i), table_rows (j)] of U_ji."""
    for start in range(0, table_rows, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        matrix = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        for k in range(K):
            width = width_of(widths, index, k, INDEXED)
            inside = i < tl.minimum(width, read)
            factor = tl.load(rstd + (0 if TRAINING else k) * read + i, mask=inside, other=0.0)
            factor *= tl.load(weight + row_of(index, k, INDEXED) * columns + i, mask=inside, other=0.0)
            first, share, double = taps(j, width, widest)
            distance = i[:, None] - first[None, :]
            aligned = tl.where((distance == 0) | ((distance == 1) & double[None, :]), share[None, :], 0.0)
            matrix += tl.where(aligned != 0, aligned * (tl.load(probs + k) * factor)[:, None], 0.0)
        store_split(table, i[:, None] * table_rows + j[None, :], table_rows * table_columns, matrix, SPLIT)


@triton.jit
def unmix(
    grad_out, out, y, mean, table, level, slope, widths, index, grad_y, grad_residual,
    pixels, area, channels, read, out_channels, residual_channels, result_channels, table_rows, table_columns, tiles,
    K: tl.constexpr, INDEXED: tl.constexpr, TRAINING: tl.constexpr, SPLIT: tl.constexpr, RELU: tl.constexpr,
    RESIDUAL: tl.constexpr, LAST: tl.constexpr, SINGLE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad_y and, with RESIDUAL, grad_residual. Grid: blocks of channels i of either, groups of `tiles` pixel tiles."""
    first = tl.program_id(0) * BLOCK_C
    i = first + tl.arange(0, BLOCK_C)
    narrowest, widest = extremes(widths, index, K, INDEXED)
    # Row j reaches channels j narrowest / widest ... j, so channels [first, first + BLOCK_C) hear from these rows.
    end = tl.where(first < widest, tl.minimum(((first + BLOCK_C) * widest + narrowest - 1) // narrowest, widest), 0)
    size = table_rows * table_columns if SPLIT else 0
    lane = tl.arange(0, BLOCK_C)
    if SINGLE:
        pointers = table + i[None, :] * table_rows + lane[:, None]
        high = tl.load(pointers)
        low = tl.load(pointers + size)
    for t in range(tiles):
        pixel = (tl.program_id(1) * tiles + t) * BLOCK_P + tl.arange(0, BLOCK_P)
        acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        if SINGLE:
            g = masked_gradient(grad_out, out, pixel, lane, out_channels, pixels, area, result_channels, RELU, LAST)
            acc = multiply(g if SPLIT else g.to(tl.float32), high, low, acc, SPLIT)
        else:
            for start in range(first, end, BLOCK_C):
                j = start + lane
                pointers = table + i[None, :] * table_rows + j[:, None]
                g = masked_gradient(grad_out, out, pixel, j, out_channels, pixels, area, result_channels, RELU, LAST)
                g = g if SPLIT else g.to(tl.float32)
                acc = multiply(g, tl.load(pointers), tl.load(pointers + size), acc, SPLIT)
        deliver(
            acc, grad_out, out, y, mean, level, slope, grad_y, grad_residual, pixel, i,
            pixels, area, channels, read, residual_channels, result_channels, TRAINING, RELU, RESIDUAL, LAST,
        )  # fmt: skip


@triton.jit
def unscale(
    grad_out, out, y, mean, table, level, slope, grad_y, grad_residual,
    pixels, area, channels, read, residual_channels, result_channels,
    TRAINING: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr, LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`unmix` of one fragment. Grid: pixel tiles, blocks of channels."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    i = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    g = masked_gradient(grad_out, out, pixel, i, read, pixels, area, result_channels, RELU, LAST).to(tl.float32)
    acc = g * tl.load(table + i, mask=i < read, other=0.0)[None, :]
    deliver(
        acc, grad_out, out, y, mean, level, slope, grad_y, grad_residual, pixel, i,
        pixels, area, channels, read, residual_channels, result_channels, TRAINING, RELU, RESIDUAL, LAST,
    )  # fmt: skip


@triton.jit
def deliver(
    acc, grad_out, out, y, mean, level, slope, grad_y, grad_residual, pixel, i,
    pixels, area, channels, read, residual_channels, result_channels,
    TRAINING: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Subtract what the batch statistics pass on, store grad_y (zero from R on) and the residual's gradient."""
    if TRAINING:
        x = centred(y, mean, pixel, i, pixels, area, channels, read, False, LAST)
        acc -= x * tl.load(slope + i, mask=i < read, other=0.0)[None, :]
        acc -= tl.load(level + i, mask=i < read, other=0.0)[None, :]
    inside = (pixel < pixels)[:, None]
    pointers = grad_y + offsets_of(pixel, i, channels, area, LAST)
    tl.store(pointers, acc.to(grad_y.dtype.element_ty), mask=inside & (i < channels)[None, :])
    if RESIDUAL:
        g = masked_gradient(grad_out, out, pixel, i, residual_channels, pixels, area, result_channels, RELU, LAST)
        pointers = grad_residual + offsets_of(pixel, i, residual_channels, area, LAST)
        tl.store(pointers, g, mask=inside & (i < residual_channels)[None, :])
