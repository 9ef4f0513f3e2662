"""What happens to the norms of widths that a step did not sample.

All candidates' affine parameters of a convolution are rows of one tensor, so SGD's weight decay and momentum move
every row in every step. That is what the code of 2019 did too, where gradients were zeroed; with today's `set_to_none`
separate modules would be skipped instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tas_fast.methods.tas.sampling import Choice
from tas_fast.methods.tas.supernet import Supernet
from tas_fast.nn import FragmentConv2d


def skip_unsampled(model: Supernet, optimizer: torch.optim.Optimizer, choice: Callable[[], Choice | None]) -> None:
    """Make `optimizer` leave alone, momentum included, the rows that `choice()`, the step's own, did not sample."""
    saved: list[tuple[Tensor, Tensor, Tensor]] = []

    def before(*_: Any) -> None:
        current = choice()
        saved.clear()
        if current is None or current.width_index is None:
            return
        _create_momentum(optimizer)
        for row, parameter in _affine_rows(model):
            sampled = torch.zeros(len(parameter), 1, dtype=torch.bool, device=parameter.device)
            sampled[current.width_index[row]] = True
            momentum = optimizer.state[parameter]["momentum_buffer"]
            saved.extend((tensor, sampled, tensor.detach().clone()) for tensor in (parameter, momentum))

    @torch.no_grad()
    def after(*_: Any) -> None:
        for tensor, sampled, old in saved:
            tensor.copy_(torch.where(sampled, tensor, old))

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _create_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start from zero, which equals SGD's own first step for rows with a gradient and stays zero for the others."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _affine_rows(model: Supernet) -> list[tuple[int, Tensor]]:
    """(row of the logits, [n, C] parameter) of every searchable convolution; a projection has its block's last row."""
    units: list[tuple[int, nn.Module]] = [(0, model.stem)]
    row = 1
    for block in model.searchable_blocks():
        units += [(row + i, conv) for i, conv in enumerate(block.convs)]
        row += len(block.convs)
        if block.shortcut is not None:
            units.append((row - 1, block.shortcut))
    fragments = [(row, unit) for row, unit in units if isinstance(unit, FragmentConv2d)]
    return [(row, parameter) for row, unit in fragments for parameter in (unit.weight, unit.bias)]
