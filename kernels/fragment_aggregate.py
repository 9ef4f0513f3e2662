"""Launchers of `fragment_aggregate` and its backward on CUDA devices; kernels in _forward.py and _backward.py.

Forward: `statistics` reads y, `prepare` turns sums into the coefficients of one affine map per pixel, `mix` reads y and
writes the result. Backward: `products` reads grad_out, out and y, `combine` and `gradients` finish the small tensors,
`unmix` reads the same again and writes grad_y. K = 1 has a diagonal map and element-wise kernels of its own.

Widths, probabilities and index stay on the device: nothing here waits for it, and all launches can be captured in a
CUDA graph. Sums are added in an order that depends on shapes alone, so two runs give the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tas_fast.kernels import _backward, _forward
from tas_fast.kernels._tiles import cdiv, chunks_of, is_last, matrix_block, stream_block

SMALL = 32  # channels of y, rows of the table: a tile of the kernels that build tables
# Data types that multiply without conversion. float16 is not among them: coefficients may leave its range.
SPLIT_TYPES = {torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """Sizes that forward and backward derive alike from the shapes."""

    pixels: int
    area: int
    read: int
    block: int  # channels of a tile of matrix products
    tile: int  # its pixels
    rows: int  # table rows (result channels), whole blocks
    columns: int  # table columns (y channels), whole blocks
    last: bool
    split: bool
    indexed: bool
    fragments: int

    @classmethod
    def of(cls, y: Tensor, probs: Tensor, index: Tensor | None, out_channels: int) -> "Plan":
        read = min(y.size(1), out_channels)
        block = matrix_block(max(read, out_channels))
        area, fragments, last = y.size(2) * y.size(3), probs.size(0), is_last(y)
        if not last and area % 16 != 0:
            block = min(block, 32)  # narrow accesses have an address each: larger tiles spill
        rows, columns = cdiv(out_channels, block) * block, cdiv(read, block) * block
        # TF32 products hold three times the registers.
        tile = 64 if y.dtype in SPLIT_TYPES else 32
        split = y.dtype in SPLIT_TYPES and fragments > 1
        indexed = index is not None
        return cls(y.size(0) * area, area, read, block, tile, rows, columns, last, split, indexed, fragments)

    def table(self, y: Tensor) -> Tensor:
        if self.split:
            return y.new_empty(2 * self.rows * self.columns)
        size = self.read if self.fragments == 1 else self.rows * self.columns
        return torch.empty(size, dtype=torch.float32, device=y.device)

    def matrix_options(self) -> dict[str, int]:
        """Return compiler options of the matrix kernels; those of TF32 that loop spill with 4 warps."""
        looping = self.rows > self.block or self.columns > self.block
        return {"num_warps": 8 if looping and self.tile == 32 else 4, "num_stages": 2}

    def matrix_tiles(self, channels: int) -> tuple[int, int]:
        """Return groups of pixel tiles and tiles in a group for a result of `channels` channels."""
        return chunks_of(self.pixels, self.tile, cdiv(channels, self.block))


def fragment_aggregate(
    y: Tensor,
    widths: Tensor,
    probs: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    index: Tensor | None,
    out_channels: int,
    relu: bool,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, mean and rstd as the operator's schema says; float32, bfloat16 or float16 data, not empty."""
    running = {"running_mean": running_mean, "running_var": running_var}
    tensors = {"widths": widths, "probs": probs, "weight": weight, "bias": bias, "residual": residual, "index": index}
    check_devices(y, tensors | running)
    check_tables(weight, {"bias": bias, **running})
    layout = torch.channels_last if is_last(y) else torch.contiguous_format
    y, weight, bias, probs, widths = y.contiguous(memory_format=layout), *_dense(weight, bias, probs, widths)
    index = None if index is None else index.contiguous()
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    plan = Plan.of(y, probs, index, out_channels)
    channels = y.size(1)
    residual_channels = 0 if residual is None else residual.size(1)
    result_channels = max(out_channels, residual_channels)
    shape = (y.size(0), result_channels, y.size(2), y.size(3))
    out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout)
    statistics_shape = (plan.read,) if training else (plan.fragments, plan.read)
    mean, rstd = weight.new_empty(statistics_shape), weight.new_empty(statistics_shape)

    partial, per_chunk, chunks = None, 0, 0
    if training:
        pixels, lanes = stream_block(plan.read, plan.last)
        chunks, tiles = chunks_of(plan.pixels, pixels, cdiv(plan.read, lanes))
        partial, per_chunk = weight.new_empty(chunks, 2, plan.read), pixels * tiles
        _forward.statistics[(chunks, cdiv(plan.read, lanes))](
            y, partial, plan.pixels, channels, plan.area, plan.read, tiles,
            LAST=plan.last, BLOCK_P=pixels, BLOCK_C=lanes, num_warps=4,
        )  # fmt: skip

    small = min(plan.block, SMALL)
    blocks = cdiv(plan.columns, small)
    table, offset = plan.table(y), weight.new_empty(plan.read if plan.fragments == 1 else blocks * plan.rows)
    moved_mean, moved_var = _dense(running_mean, running_var)
    _forward.prepare[(blocks,)](
        partial, widths, index, probs, weight, bias, moved_mean, moved_var, mean, rstd, table, offset,
        plan.pixels, per_chunk, chunks, plan.read, weight.size(1), plan.rows, plan.columns, momentum, eps,
        K=plan.fragments, TRAINING=training, UPDATE=training and running_mean is not None, INDEXED=plan.indexed,
        SPLIT=plan.split, BLOCK_N=64, BLOCK_J=small, BLOCK_I=small, num_warps=4,
    )  # fmt: skip
    if training:
        _write_back(running_mean, moved_mean)
        _write_back(running_var, moved_var)

    if plan.fragments == 1:
        pixels, lanes = stream_block(result_channels, plan.last)
        _forward.scale[(cdiv(plan.pixels, pixels), cdiv(result_channels, lanes))](
            y, residual, out, mean, table, offset,
            plan.pixels, plan.area, channels, plan.read, residual_channels, result_channels,
            RESIDUAL=residual is not None, RELU=relu, LAST=plan.last, BLOCK_P=pixels, BLOCK_C=lanes, num_warps=4,
        )  # fmt: skip
    else:
        groups, tiles = plan.matrix_tiles(result_channels)
        _forward.mix[(cdiv(result_channels, plan.block), groups)](
            y, residual, out, mean, table, offset, widths, index,
            plan.pixels, plan.area, channels, plan.read, residual_channels, result_channels,
            plan.rows, plan.columns, blocks, tiles,
            K=plan.fragments, INDEXED=plan.indexed, SPLIT=plan.split, RESIDUAL=residual is not None, RELU=relu,
            LAST=plan.last, SINGLE=max(plan.rows, plan.columns, result_channels) == plan.block,
            BLOCK_P=plan.tile, BLOCK_C=plan.block, **plan.matrix_options(),
        )  # fmt: skip
    return out, mean, rstd


def fragment_aggregate_backward(
    grad_out: Tensor,
    y: Tensor,
    out: Tensor | None,
    widths: Tensor,
    probs: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    index: Tensor | None,
    out_channels: int,
    residual_channels: int,
    training: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients as the operator's schema says; float32, bfloat16 or float16 data, not empty."""
    tensors = {"out": out, "widths": widths, "probs": probs, "weight": weight, "bias": bias, "index": index}
    check_devices(y, tensors | {"grad_out": grad_out, "mean": mean, "rstd": rstd})
    check_tables(weight, {"bias": bias})
    needs_y, needs_probs, needs_weight, needs_bias, needs_residual = output_mask
    layout = torch.channels_last if is_last(y) else torch.contiguous_format
    grad_out, y = grad_out.contiguous(memory_format=layout), y.contiguous(memory_format=layout)
    out = None if out is None else out.contiguous(memory_format=layout)
    weight, bias, probs, widths, mean, rstd = _dense(weight, bias, probs, widths, mean, rstd)
    index = None if index is None else index.contiguous()
    plan = Plan.of(y, probs, index, out_channels)
    empty = weight.new_empty(0)
    grad_y = torch.empty_like(y, memory_format=layout) if needs_y else empty
    grad_probs = torch.empty_like(probs) if needs_probs else empty
    needs_tables = needs_weight or needs_bias
    grad_weight, grad_bias = (torch.empty_like(weight) if needs_tables else empty for _ in range(2))
    grad_residual = empty
    if needs_residual:
        shape = (y.size(0), residual_channels, y.size(2), y.size(3))
        grad_residual = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout)

    if needs_y or needs_probs or needs_tables:
        sums, rows = _sums(plan, grad_out, out, y, mean, widths, index, out_channels)
        small = min(plan.block, SMALL)
        table, level, slope = plan.table(y), weight.new_empty(plan.read), weight.new_empty(plan.read)
        n, table_blocks = widths.size(0), cdiv(plan.columns, small)
        _backward.gradients[(max(table_blocks, cdiv(weight.size(1), small)), n + 2)](
            sums, mean, rstd, widths, index, probs, weight, bias,
            grad_probs, grad_weight, grad_bias, table, level, slope,
            plan.pixels, plan.read, weight.size(1), rows, plan.rows, plan.columns, table_blocks, n,
            K=plan.fragments, INDEXED=plan.indexed, TRAINING=training, SPLIT=plan.split,
            PROBS=needs_probs, TABLES=needs_tables, BLOCK_J=small, BLOCK_I=small, num_warps=8,
        )  # fmt: skip
        if needs_y:
            _spread(
                plan, grad_out, out, y, mean, table, level, slope, widths, index, grad_y, grad_residual,
                out_channels, residual_channels, training, needs_residual,
            )  # fmt: skip
    if needs_residual and not needs_y:
        masked = grad_out if out is None else torch.ops.aten.threshold_backward(grad_out, out, 0)
        grad_residual.copy_(masked[:, :residual_channels])
    return (
        grad_y,
        grad_probs,
        grad_weight if needs_weight else empty,
        grad_bias if needs_bias else empty,
        grad_residual,
    )


def _sums(
    plan: Plan,
    grad_out: Tensor,
    out: Tensor | None,
    y: Tensor,
    mean: Tensor,
    widths: Tensor,
    index: Tensor | None,
    out_channels: int,
) -> tuple[Tensor, int]:
    """Return the sums of products over all pixels, and how many rows j each kind has."""
    channels, result_channels, relu = y.size(1), grad_out.size(1), out is not None
    if plan.fragments == 1:
        rows, kinds = plan.read, 2
        pixels, lanes = stream_block(rows, plan.last)
        parts, tiles = chunks_of(plan.pixels, pixels, cdiv(rows, lanes))
        sums = mean.new_empty(parts, kinds * rows)
        _backward.diagonal_products[(parts, cdiv(rows, lanes))](
            grad_out, out, y, mean, sums,
            plan.pixels, plan.area, channels, plan.read, result_channels, rows, tiles,
            RELU=relu, LAST=plan.last, BLOCK_P=pixels, BLOCK_C=lanes, num_warps=4,
        )  # fmt: skip
    else:
        rows, kinds = plan.rows, 2 * plan.fragments + 1
        blocks_j, blocks_i = plan.rows // plan.block, plan.columns // plan.block
        chunks, tiles = chunks_of(plan.pixels, plan.tile, blocks_j * blocks_i)
        parts = chunks * blocks_i
        sums = mean.new_empty(parts, kinds * rows)
        _backward.products[(blocks_j * blocks_i, chunks)](
            grad_out, out, y, mean, sums, widths, index,
            plan.pixels, plan.area, channels, plan.read, out_channels, result_channels, rows, tiles,
            K=plan.fragments, INDEXED=plan.indexed, SPLIT=plan.split, RELU=relu, LAST=plan.last,
            BLOCKS_I=blocks_i, BLOCK_P=plan.tile, BLOCK_C=plan.block, **plan.matrix_options(),
        )  # fmt: skip
    combined = mean.new_empty(kinds * rows)
    _backward.combine[(cdiv(kinds * rows, 32),)](sums, combined, parts, kinds * rows, BLOCK_N=64, BLOCK_C=32)
    return combined, rows


def _spread(
    plan: Plan,
    grad_out: Tensor,
    out: Tensor | None,
    y: Tensor,
    mean: Tensor,
    table: Tensor,
    level: Tensor,
    slope: Tensor,
    widths: Tensor,
    index: Tensor | None,
    grad_y: Tensor,
    grad_residual: Tensor,
    out_channels: int,
    residual_channels: int,
    training: bool,
    needs_residual: bool,
) -> None:
    """Write grad_y, and the residual's gradient if asked for."""
    channels, result_channels = y.size(1), grad_out.size(1)
    widest = max(channels, residual_channels if needs_residual else 0)
    options = {"TRAINING": training, "RELU": out is not None, "RESIDUAL": needs_residual, "LAST": plan.last}
    if plan.fragments == 1:
        pixels, lanes = stream_block(widest, plan.last)
        _backward.unscale[(cdiv(plan.pixels, pixels), cdiv(widest, lanes))](
            grad_out, out, y, mean, table, level, slope, grad_y, grad_residual,
            plan.pixels, plan.area, channels, plan.read, residual_channels, result_channels,
            BLOCK_P=pixels, BLOCK_C=lanes, num_warps=4, **options,
        )  # fmt: skip
        return
    groups, tiles = plan.matrix_tiles(widest)
    _backward.unmix[(cdiv(widest, plan.block), groups)](
        grad_out, out, y, mean, table, level, slope, widths, index, grad_y, grad_residual,
        plan.pixels, plan.area, channels, plan.read, out_channels, residual_channels, result_channels,
        plan.rows, plan.columns, tiles,
        K=plan.fragments, INDEXED=plan.indexed, SPLIT=plan.split,
        SINGLE=max(plan.rows, plan.columns, widest) == plan.block,
        BLOCK_P=plan.tile, BLOCK_C=plan.block, **options, **plan.matrix_options(),
    )  # fmt: skip


def check_devices(y: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """Raise ValueError for a tensor that is not beside `y`: kernels would read an address of another memory."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != y.device:
            raise ValueError(f"fragment_aggregate: {name} must be on {y.device} like y, got {tensor.device}")


def check_tables(weight: Tensor, tables: dict[str, Tensor | None]) -> None:
    """Raise ValueError for a table that is not shaped like `weight`: all are read with one distance of rows."""
    for name, table in tables.items():
        if table is not None and table.shape != weight.shape:
            shapes = f"{tuple(weight.shape)} like weight, got {tuple(table.shape)}"
            raise ValueError(f"fragment_aggregate: {name} must be {shapes}")


def _dense(*tensors: Tensor | None) -> tuple:
    return tuple(None if x is None else x.contiguous() for x in tensors)


def _write_back(target: Tensor | None, moved: Tensor | None) -> None:
    if target is not None and moved is not None and moved is not target:
        target.copy_(moved)
