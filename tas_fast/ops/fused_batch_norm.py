"""BatchNorm, residual and ReLU in one pass: `fragment_aggregate` with a single fragment of full width.

It has no operator of its own: the backends' one kernel for fragments serves every BatchNorm of the library.
"""

import torch
from torch import Tensor

from tas_fast.ops.fragment_aggregate import fragment_aggregate


def fused_batch_norm(
    y: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    running_mean: Tensor | None,  # [C]
    running_var: Tensor | None,  # [C]
    *,
    residual: Tensor | None = None,  # [N, C_r, H, W]
    relu: bool = False,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return BatchNorm2d of `y`, plus `residual` and followed by ReLU if asked for: one fragment of full width.

    Args, Returns, Raises: as `fragment_aggregate`, with vectors [C] in place of tables [n, C].
    """
    if weight.dim() != 1 or bias.dim() != 1:
        shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise ValueError(f"fused_batch_norm: weight and bias must be [C] with C = {y.size(1)}, got {shapes}")
    return fragment_aggregate(
        y,
        torch.full((1,), y.size(1), dtype=torch.int64, device=y.device),
        torch.ones(1, dtype=weight.dtype, device=y.device),
        weight[None],
        bias[None],
        None if running_mean is None else running_mean[None],
        None if running_var is None else running_var[None],
        residual=residual,
        relu=relu,
        training=training,
        momentum=momentum,
        eps=eps,
        out_channels=y.size(1),
    )
