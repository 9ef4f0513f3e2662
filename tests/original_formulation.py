"""The formulation of the original TAS code, composed of torch's own layers: tests compare with it, benchmarks race it.

One BatchNorm per fragment, interpolation by adaptive pooling, scaled sums, residual and ReLU, each a pass of its own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_interpolation(x: Tensor, out_channels: int) -> Tensor:
    """Return adaptive average pooling of `x` [N, C, H, W] along its channel axis, [N, out_channels, H, W]."""
    if x.size(1) == out_channels:
        return x
    return F.adaptive_avg_pool3d(x, (out_channels, x.size(2), x.size(3)))


def fragment_aggregate(
    y: Tensor,  # [N, C_y, H, W]
    widths: Sequence[int],  # n of them
    probs: Tensor,  # [K]
    weight: Tensor,  # [n, C]
    bias: Tensor,  # [n, C]
    running_mean: Tensor | None,  # [n, C]
    running_var: Tensor | None,  # [n, C]
    *,
    residual: Tensor | None = None,  # [N, C_r, H, W]
    relu: bool = False,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    index: Sequence[int] | None = None,  # K of them
) -> Tensor:
    """Return what `tas_fast.ops.fragment_aggregate` means, with max(sampled widths) channels before the residual."""
    rows = list(range(len(widths)) if index is None else index)
    channels = max(widths[row] for row in rows)
    out = torch.zeros_like(y[:, :channels])
    for prob, row in zip(probs, rows, strict=True):
        width = widths[row]
        fragment = F.batch_norm(
            y[:, :width],
            None if running_mean is None else running_mean[row, :width],
            None if running_var is None else running_var[row, :width],
            weight[row, :width],
            bias[row, :width],
            training,
            momentum,
            eps,
        )
        out = out + prob * channel_interpolation(fragment, channels)
    if residual is not None:
        out = add_first_channels(out, residual)
    return out.relu() if relu else out


def add_first_channels(a: Tensor, b: Tensor) -> Tensor:
    """Return `a` + `b` with the narrower one added to the first channels of the wider one."""
    channels = max(a.size(1), b.size(1))
    return pad_channels(a, channels) + pad_channels(b, channels)


def pad_channels(x: Tensor, channels: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.size(1)))


def weighted_interpolation_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    channels = max(x.size(1) for x in tensors)
    aligned = [weight * channel_interpolation(x, channels) for x, weight in zip(tensors, weights, strict=True)]
    return torch.stack(aligned).sum(0)


def distillation_loss(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, temperature: float) -> Tensor:
    soft_student, soft_teacher = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    divergence = F.kl_div(soft_student, soft_teacher, reduction="batchmean")
    return (1 - alpha) * F.cross_entropy(student, target) + alpha * temperature**2 * divergence
