"""Accuracy of a network on a test set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from tas_fast.engine.precision import Precision


@torch.no_grad()
def accuracy(model: nn.Module, loader: Iterable[Sequence[Tensor]], precision: Precision) -> float:
    """Return the top-1 accuracy in percent over one pass of `loader`; the model runs in evaluation mode."""
    training = model.training
    model.eval()
    correct, count = torch.zeros((), dtype=torch.int64, device=precision.device), 0
    for images, classes in loader:
        with precision.autocast():
            logits = model(images)
        correct += (logits.argmax(1) == classes).sum()
        count += len(classes)
    model.train(training)
    return 100.0 * correct.item() / count
