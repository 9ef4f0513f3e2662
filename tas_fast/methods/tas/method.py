"""Algorithm 1 of TAS: each step updates the weights on one batch and the architecture on another."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tas_fast.architecture import Architecture
from tas_fast.config import TasConfig
from tas_fast.engine import Method, Precision
from tas_fast.engine.method import Batch
from tas_fast.methods.tas.derive import within_target
from tas_fast.methods.tas.objective import Target, macs_loss, temperature
from tas_fast.methods.tas.sampling import Choice
from tas_fast.methods.tas.supernet import Supernet
from tas_fast.methods.tas.unsampled import skip_unsampled


class TAS(Method[Supernet]):
    """The search. A batch holds images and classes for the weights, then images and classes for the architecture.

    Args:
        supernet: what is searched; its logits get an Adam of their own.
        config: hyper-parameters.
        target: MACs to reach.
        seed: of widths and Gumbel noise.
    """

    def __init__(self, supernet: Supernet, config: TasConfig, target: float, seed: int) -> None:
        self.config = config
        unpruned = supernet.space.unpruned.macs()
        self.target = Target.of(target, unpruned, form=config.macs_loss, tolerance=config.tolerance)
        self.tau = config.tau_max
        self.epoch = 0
        self.last_choice: Choice | None = None
        self.logits = supernet.architecture_parameters()
        self.generator = torch.Generator(self.logits[0].device).manual_seed(seed)
        self.optimizer = torch.optim.Adam(
            self.logits, lr=config.arch_lr, betas=(config.arch_beta1, 0.999), weight_decay=config.arch_weight_decay
        )

    def prepare(self, model: Supernet, optimizer: torch.optim.Optimizer) -> None:
        if self.config.unsampled_norms == "skip":
            skip_unsampled(model, optimizer, lambda: self.last_choice)

    def before_epoch(self, epoch: int, epochs: int) -> None:
        config, self.epoch = self.config, epoch
        self.tau = temperature(epoch, epochs, start=config.tau_max, end=config.tau_min, schedule=config.tau_schedule)

    def loss(self, model: Supernet, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        images, classes = batch[:2]
        with torch.no_grad():  # the weights' step has no use for gradients of the logits
            self.last_choice = self._sample(model)
        logits = model(images, self.last_choice)
        return F.cross_entropy(logits.float(), classes), logits, classes

    def after_step(self, model: Supernet, batch: Batch, precision: Precision) -> dict[str, Tensor]:
        """The architecture's step (equation 7): gradients of the logits alone; norms use and track batch statistics."""
        images, classes = batch[2:4]
        with precision.autocast():
            logits = model(images, self._sample(model))
            loss = F.cross_entropy(logits.float(), classes)
        accuracy = 100.0 * (logits.detach().argmax(1) == classes).float().mean()
        if self.epoch >= self.config.arch_warmup_epochs:
            loss = loss + self.config.macs_weight * self._macs_loss(model)
            scaled = precision.scaler.scale(loss)
            for parameter, grad in zip(self.logits, torch.autograd.grad(scaled, self.logits), strict=True):
                parameter.grad = grad
            precision.step(self.optimizer)
        return {"arch_loss": loss, "accuracy": accuracy}

    def after_epoch(self, model: Supernet) -> dict[str, Any]:
        space = model.space
        with torch.no_grad():
            widths, depths, expected = model.width_probs(), model.depth_probs(), model.expected_macs()
        return {
            "tau": self.tau,
            "expected_macs": expected.item(),
            "argmax_macs": int(model.argmax_macs().item()) + space.num_classes,
            "target_macs": self.target.macs,
            "width_probs": None if widths is None else _rounded(widths),
            "width_choices": [list(row) for row in space.widths],
            "depth_probs": None if depths is None else _rounded(depths),
            "depth_choices": [list(row) for row in space.depths],
        }

    def result(self, model: Supernet) -> Architecture:
        """Return the argmax architecture, with `derive: target` corrected to cost what was asked for."""
        if self.config.derive == "argmax":
            return model.architecture()
        return within_target(model, self.target.lower, self.target.upper)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())

    def _sample(self, model: Supernet) -> Choice:
        return model.sample(self.tau, self.config.num_fragments, generator=self.generator, gumbel=self.config.gumbel)

    def _macs_loss(self, model: Supernet) -> Tensor:
        discrete = model.argmax_macs(original=self.config.discrete_cost == "original")
        return macs_loss(model.expected_macs(), discrete, self.target)


def _rounded(probs: Tensor) -> list[list[float]]:
    return [[round(p, 5) for p in row] for row in probs.tolist()]
