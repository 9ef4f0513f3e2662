"""Small odd cases of the operators that have device kernels, with everything that both passes of an operator take."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call of fragment_aggregate; K is the number of widths, or of entries of index."""

    widths: tuple[int, ...]
    y_channels: int
    out_channels: int
    residual_channels: int | None = None
    index: tuple[int, ...] | None = None
    shape: tuple[int, int, int] = (3, 3, 5)  # N, H, W
    relu: bool = True
    training: bool = True
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.channels_last

    def forward_arguments(self, device: torch.device | str = "cpu") -> list[object]:
        """Return the arguments of the registered operator; the mean of y is far from zero."""
        rows, columns = len(self.widths), max(self.y_channels, *self.widths)
        y = self.batch(self.y_channels, device) + 3
        tables = [torch.randn(rows, columns, device=device) for _ in range(3)]
        tables.append(torch.rand(rows, columns, device=device) + 0.5)
        residual = None if self.residual_channels is None else self.batch(self.residual_channels, device)
        index = None if self.index is None else torch.tensor(self.index, device=device)
        probs = torch.rand(len(self.index or self.widths), device=device)
        flags = (self.out_channels, self.relu, self.training, 0.1, 1e-5)
        return [y, torch.tensor(self.widths, device=device), probs, *tables, residual, index, *flags]

    def backward_arguments(self, forward: list[object], results: tuple[Tensor, Tensor, Tensor]) -> list[object]:
        y, widths, probs, weight, bias, _, _, residual, index, *_ = forward
        out, mean, rstd = results
        grad_out = torch.randn(out.shape, device=out.device).to(out.dtype, memory_format=self.layout)
        residual_channels = 0 if residual is None else self.residual_channels
        mask = [True, True, True, True, self.relu and residual is not None]
        saved = out if self.relu else None
        return [
            grad_out, y, saved, widths, probs, weight, bias, mean, rstd, index,
            self.out_channels, residual_channels, self.training, mask,
        ]  # fmt: skip

    def batch(self, channels: int, device: torch.device | str) -> Tensor:
        n, h, w = self.shape
        return torch.randn(n, channels, h, w, device=device).to(self.dtype, memory_format=self.layout)


CASES = {
    "two fragments": Case((3, 6), 6, 6),
    "first wider, more channels than read": Case((5, 3), 8, 5, relu=False),
    "table, residual": Case((3, 5, 8), 8, 8, 8, index=(2, 0)),
    "same row twice, narrow residual": Case((3, 5, 8), 6, 8, 4, index=(1, 1)),
    "width one, wide residual": Case((1, 7), 7, 7, 9),
    "single, padded": Case((5,), 6, 8, 9),
    "single of three": Case((3, 5, 8), 5, 5, index=(1,), relu=False),
    "four fragments": Case((9, 4, 13, 16), 16, 16),
    "eight fragments, three of one row": Case((4, 6, 8, 9, 11, 12, 14, 16), 16, 16, index=(7, 2, 2, 0, 5, 2, 4, 7)),
}
# With blocks of 16 channels these need several: of y, of the result, of the residual, and outside every window.
BLOCKED_CASES = {
    "wide residual": Case((13, 43, 60), 60, 64, 90, index=(0, 2)),
    "narrow residual, padded": Case((13, 43, 40), 43, 70, 20, index=(1, 0), shape=(2, 3, 3)),
    "y wider than read": Case((1, 43, 43), 80, 53, index=(0, 1), shape=(2, 2, 5), relu=False),
}
INTERPOLATIONS = [(3, 7), (7, 3), (8, 8), (1, 5), (5, 1), (4, 12), (12, 4), (16, 23)]
