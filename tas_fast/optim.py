"""Optimisers and learning rates of the recipes, from torch.optim."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def sgd(
    parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> torch.optim.SGD:
    """Return torch's fused SGD over all parameters; norms and biases decay too, as in the TAS recipes."""
    nesterov = nesterov and momentum > 0
    parameters = list(parameters)
    return torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
    )


def cosine_lr(position: float, *, base: float, epochs: int, warmup_epochs: int = 0) -> float:
    """Return the learning rate at `position` in epochs: linear warm-up, then cosine to 0, constant within an epoch.

    `epochs` counts the warm-up; the cosine spans the rest. The released code ends with as many epochs at rate 0 as it
    warmed up instead.
    """
    if position < warmup_epochs:
        return base * position / warmup_epochs
    progress = (math.floor(position) - warmup_epochs) / max(epochs - warmup_epochs, 1)
    return base * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
