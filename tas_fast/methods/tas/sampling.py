"""Drawing sub-networks: a `Choice` of widths and a mixture of depths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tas_fast import ops
from tas_fast.errors import UsageError


@dataclass(frozen=True)
class Choice:
    """What one forward pass uses; None where widths or depths are not searched."""

    width_index: Tensor | None  # [L, K] int64
    width_prob: Tensor | None  # [L, K], rows sum to 1
    depth_prob: Tensor | None  # [S, D], rows sum to 1


def sample(
    width_logits: Tensor | None,
    depth_logits: Tensor | None,
    tau: float,
    k: int,
    *,
    generator: torch.Generator | None,
    width_index: Tensor | None,
    gumbel: bool,
) -> Choice:
    """Return a choice drawn from the logits; `Supernet.sample` documents the arguments."""
    index = prob = depth_prob = None
    if width_logits is not None:
        candidates = width_logits.size(1)
        if not 1 <= k <= candidates:
            raise UsageError(
                f"K = {k} widths per convolution asked for; K must be 1 to {candidates}, the number of candidates"
            )
        index, prob = ops.gumbel_topk(width_logits, tau, k, generator=generator, index=width_index, gumbel=gumbel)
    if depth_logits is not None:
        depth_prob = ops.gumbel_softmax(depth_logits, tau, generator=generator, gumbel=gumbel)
    return Choice(index, prob, depth_prob)
