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
    index = prob = None
    if width_logits is not None:
        if not 1 <= k <= width_logits.size(1):
            raise UsageError(f"{k} widths per convolution (K) asked for; there are {width_logits.size(1)} candidates: 1 to {width_logits.size(1)}")
        if width_index is None:
            index, prob = ops.gumbel_topk(width_logits, tau, k, generator=generator, gumbel=gumbel)
        else:
            index = width_index
            prob = perturbed(width_logits, tau, generator, gumbel).gather(1, index).softmax(1)
    depth_prob = None if depth_logits is None else perturbed(depth_logits, tau, generator, gumbel).softmax(1)
    return Choice(index, prob, depth_prob)
