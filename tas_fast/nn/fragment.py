"""Modules whose BatchNorm is a sum of fragments: one searchable convolution, its norm part, and the plain norm.

They hold parameters and running statistics; `tas_fast.ops.fragment_aggregate` computes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_fast.ops import active_conv2d, fragment_aggregate, fused_batch_norm


class FragmentBatchNorm2d(nn.Module):
    """BatchNorm with one row of parameters and running statistics per width candidate.

    A forward pass normalises the channel prefixes that `index` selects, aligns them by channel interpolation and adds
    them with the weights `prob`; then come the residual and ReLU.

    Args:
        num_features: C, channels of the widest candidate.
        choices: widths of the candidates, each in 1..C, the largest equal to C; None is the single width C.
        relu: rectify the result.
        eps, momentum: as in torch.nn.BatchNorm2d.

    Raises:
        ValueError: `choices` is empty, exceeds 1..C or does not reach C.

    Example:
        >>> norm = FragmentBatchNorm2d(16, choices=(4, 9, 16))
        >>> norm(torch.randn(2, 16, 8, 8), torch.tensor([0, 1]), torch.tensor([0.3, 0.7])).shape
        torch.Size([2, 9, 8, 8])
    """

    choices: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        choices: Sequence[int] | None = None,
        relu: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        widths = (num_features,) if choices is None else tuple(choices)
        if not widths or min(widths) < 1 or max(widths) != num_features:
            name = type(self).__name__
            raise ValueError(
                f"{name}: choices must be widths in 1..{num_features} that reach {num_features}, got {widths}"
            )
        self.num_features, self.relu, self.eps, self.momentum = num_features, relu, eps, momentum
        self.weight = nn.Parameter(torch.ones(len(widths), num_features))
        self.bias = nn.Parameter(torch.zeros(len(widths), num_features))
        self.register_buffer("running_mean", torch.zeros(len(widths), num_features))
        self.register_buffer("running_var", torch.ones(len(widths), num_features))
        self.register_buffer("choices", torch.tensor(widths), persistent=False)

    def forward(
        self,
        y: Tensor,  # [N, C_y, H, W]
        index: Tensor,  # [K]
        prob: Tensor,  # [K]
        residual: Tensor | None = None,  # [N, C_r, H, W]
        *,
        out_channels: int | None = None,
    ) -> Tensor:
        """Return the sum of the fragments `index` [N, max(out_channels, C_r), H, W].

        Args:
            y: [N, C_y, H, W] with at least as many channels as the widest selected candidate.
            index: [K] int64, positions in `choices`.
            prob: [K], float32 (float64 in a float64 module).
            residual: added to the first channels, any C_r.
            out_channels: channels of the sum; None reads the widest selected width on the host, which waits for a GPU.
        """
        return fragment_aggregate(
            y,
            self.choices,
            prob,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            residual=residual,
            relu=self.relu,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            index=index,
            out_channels=out_channels,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, choices={tuple(self.choices.tolist())}, relu={self.relu}, eps={self.eps}"


class FragmentConv2d(FragmentBatchNorm2d):
    """A convolution whose output width is searched: active-channel convolution, then `FragmentBatchNorm2d`.

    The input may have fewer channels than `in_channels`. Filters are initialised as He et al. (2015), fan out.

    Args:
        in_channels, out_channels: full widths.
        kernel_size, stride, padding: of the convolution, square.
        choices, relu: as in `FragmentBatchNorm2d`.
        average_pool: average 2x2 windows of the input first, at odd borders smaller ones (the shortcut that halves the
            resolution).

    Example:
        >>> unit = FragmentConv2d(8, 16, 3, padding=1, choices=(4, 9, 16), relu=True)
        >>> unit(torch.randn(2, 5, 8, 8), torch.tensor([2, 0]), torch.tensor([0.5, 0.5])).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        choices: Sequence[int] | None = None,
        relu: bool = False,
        average_pool: bool = False,
    ) -> None:
        super().__init__(out_channels, choices=choices, relu=relu)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.average_pool = average_pool
        self.conv_weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.conv_weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        x: Tensor,  # [N, c_in, H, W]
        index: Tensor,  # [K]
        prob: Tensor,  # [K]
        residual: Tensor | None = None,  # [N, C_r, H', W']
        *,
        out_channels: int | None = None,
    ) -> Tensor:
        """Return the mixed fragments of the convolution [N, max(out_channels, C_r), H', W'].

        Args:
            x: [N, c_in, H, W], c_in <= in_channels.
            index, prob, residual: as in `FragmentBatchNorm2d`.
            out_channels: channels to compute, at least the widest selected width; from that width on the sum is zero.
                None reads the width on the host, which waits for a GPU.
        """
        if out_channels is None:
            out_channels = int(self.choices[index].max())
        if self.average_pool:
            # Rounding up keeps odd sizes equal to those of a strided convolution; even sizes are unaffected.
            x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        y = active_conv2d(x, self.conv_weight, out_channels, self.stride, self.padding)
        return super().forward(y, index, prob, residual, out_channels=out_channels)

    def extra_repr(self) -> str:
        convolution = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        pool = ", average_pool=True" if self.average_pool else ""
        return f"{convolution}, padding={self.padding}{pool}, choices={tuple(self.choices.tolist())}, relu={self.relu}"


class FusedBatchNorm2d(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d with residual and ReLU in the same pass; the parameters and state_dict are BatchNorm2d's.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as in torch.nn.BatchNorm2d.
        relu: rectify the result.

    Example:
        >>> y = torch.randn(2, 16, 8, 8)
        >>> FusedBatchNorm2d(16, relu=True)(y, residual=y).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        relu: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.relu = relu

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised `y` [N, C, H, W], plus `residual` [N, C_r, H, W], rectified if the module says so."""
        self._check_input_dim(y)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
        weight = torch.ones(self.num_features, dtype=dtype, device=y.device) if self.weight is None else self.weight
        bias = torch.zeros(self.num_features, dtype=dtype, device=y.device) if self.bias is None else self.bias
        return fused_batch_norm(
            y,
            weight,
            bias,
            self.running_mean,
            self.running_var,
            residual=residual,
            relu=self.relu,
            training=self.training or self.running_mean is None,
            momentum=momentum,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}"
