"""The steps of the reference of `fragment_aggregate`: statistics, alignment matrices, and maps over channels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tas_fast.ops._library import layout_of
from tas_fast.ops.channel_interpolation import windows


def centre(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return x - mean in `dtype`, mean and biased variance [C]; zeros for an empty batch."""
    samples = max(x.numel() // x.size(1), 1)
    mean = x.sum((0, 2, 3), dtype=dtype) / samples
    centred = x - mean[:, None, None]
    return centred, mean, (centred * centred).sum((0, 2, 3)) / samples


def update_running(
    statistics: Sequence[tuple[Tensor, Tensor]], widths: Tensor, index: Tensor | None, momentum: float
) -> None:
    """Move running tables [n, C] towards batch values [R]: first widths[row] entries, once per mention in `index`."""
    read = statistics[0][1].size(0)
    rows = torch.arange(widths.size(0), device=widths.device)
    mentions = torch.ones_like(rows) if index is None else (index[:, None] == rows).sum(0)
    step = 1 - (1 - momentum) ** mentions.to(statistics[0][1].dtype)[:, None]
    inside = (torch.arange(read, device=widths.device) < widths[:, None]) & (mentions > 0)[:, None]
    for running, value in statistics:
        view = running[:, :read]
        view.copy_(torch.where(inside, torch.lerp(view, value.expand_as(view), step.expand_as(view)), view))


def bands_of(widths: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return A_k of every fragment [K, rows, columns]; of a single one, which stays, the diagonal [1, 1, columns]."""
    channel = torch.arange(columns, device=widths.device)
    if widths.size(0) == 1:
        return (channel < widths).to(dtype).view(1, 1, -1)
    row, largest = torch.arange(rows, device=widths.device), widths.max()
    first, stop = windows(row, widths[:, None], largest)
    count = ((stop - first) * (row < largest)).to(dtype)
    inside = (channel >= first[:, :, None]) & (channel < stop[:, :, None])
    return inside * torch.where(count > 0, 1 / count, 0)[:, :, None]


def map_channels(matrix: Tensor, x: Tensor, diagonal: bool) -> Tensor:
    """Multiply the channels of each pixel by `matrix` [J, I] or a diagonal given as [1, I], in the layout of `x`."""
    if diagonal:
        return x * matrix[0][:, None, None]
    if layout_of(x) is torch.channels_last:
        return (x.permute(0, 2, 3, 1) @ matrix.T).permute(0, 3, 1, 2)
    return (matrix @ x.flatten(2)).unflatten(2, x.shape[2:])


def products_of(g: Tensor, x: Tensor, diagonal: bool) -> Tensor:
    """Return sum over samples of g_j x_i: [J, I], or only those with i = j as [1, I]."""
    if diagonal:
        return (g * x).sum((0, 2, 3)).view(1, -1)
    pixels, (rows, columns) = x.size(2) * x.size(3), (g.size(1), x.size(1))
    if layout_of(x) is torch.contiguous_format and rows * columns < pixels * (rows + columns):
        # One product per image is smaller than the transposed copies of g and x.
        return (g.flatten(2) @ x.flatten(2).mT).sum(0)
    return g.transpose(0, 1).flatten(1) @ x.transpose(0, 1).flatten(1).T


def pad_channels(x: Tensor, channels: int) -> Tensor:
    return x if x.size(1) == channels else F.pad(x, (0, 0, 0, 0, 0, channels - x.size(1)))
