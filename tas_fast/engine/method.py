"""What one paper adds to training: named moments with empty defaults, called in the order in which they stand here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from tas_fast.architecture import Architecture
from tas_fast.engine.precision import Precision

Batch = Sequence[Tensor]
Model = TypeVar("Model", bound=nn.Module)


class Method(Generic[Model]):
    """A way of training; a batch is what the loader yields: images [N, C, H, W], classes [N], and what follows them."""

    def prepare(self, model: Model, optimizer: torch.optim.Optimizer) -> None:
        """Attach to the model and its optimizer, once, before the first step."""

    def before_epoch(self, epoch: int, epochs: int) -> None:
        """Set what changes from epoch to epoch."""

    def loss(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return (loss to descend, logits, classes); runs under autocast."""
        raise NotImplementedError

    def after_step(self, model: Model, batch: Batch, precision: Precision) -> dict[str, Tensor]:
        """Act after the weights' step; returns scalars whose mean over the epoch is logged."""
        return {}

    def after_epoch(self, model: Model) -> dict[str, Any]:
        """Return further values of the epoch's row in `metrics.jsonl`."""
        return {}

    def result(self, model: Model) -> Architecture | None:
        """Return the architecture that the method ends with, None when it does not choose one."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beyond model and optimizer: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class Supervised(Method[nn.Module]):
    """Plain training with a criterion (images, logits, target) -> loss, and optionally mixed images.

    Args:
        criterion: e.g. `tas_fast.distill.CrossEntropy` or `Distillation`.
        mixup: a torchvision v2 `MixUp`, or None.
    """

    def __init__(
        self, criterion: Callable[[Tensor, Tensor, Tensor], Tensor], mixup: Callable[..., Any] | None = None
    ) -> None:
        self.criterion = criterion
        self.mixup = mixup

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        images, classes = batch[:2]
        target = classes
        if self.mixup is not None:
            images, target = self.mixup(images, classes)
        logits = model(images)
        return self.criterion(images, logits, target), logits, classes
