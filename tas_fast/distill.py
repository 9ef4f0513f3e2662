"""Learning from the unpruned network: a criterion that asks the teacher (TAS, equation 10 as the code released it)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_fast import ops


class CrossEntropy:
    """Cross-entropy of the logits, with label smoothing; targets may be classes [N] or probabilities [N, C]."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, images: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)


class Distillation:
    """(1 - alpha) x cross-entropy + alpha x T^2 x KL(teacher || student) at temperature T, on the same images.

    Args:
        teacher: the unpruned network; it is put into evaluation mode and never changes.
        alpha: weight of the soft term, 0 to 1.
        temperature: T.
        label_smoothing: of the hard term.
    """

    def __init__(self, teacher: nn.Module, alpha: float, temperature: float, label_smoothing: float = 0.0) -> None:
        self.teacher = teacher.eval()
        self.alpha = alpha
        self.temperature = temperature
        self.label_smoothing = label_smoothing

    def __call__(self, images: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher(images)
        if self.label_smoothing:
            target = smoothed(target, logits.size(1), self.label_smoothing)
        return ops.distillation_loss(logits, teacher, target, self.alpha, self.temperature)


def smoothed(target: Tensor, num_classes: int, amount: float) -> Tensor:
    """Return classes [N] or probabilities [N, C] as probabilities mixed with `amount` of the uniform distribution."""
    if not target.is_floating_point():
        target = F.one_hot(target, num_classes).float()
    return torch.lerp(target, torch.full_like(target, 1 / num_classes), amount)
