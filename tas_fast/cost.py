"""What a network costs: multiply-accumulates and parameters of any module, counted by running it without data."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tas_fast.errors import UsageError


def count_macs(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of one forward pass; papers call them FLOPs, PyTorch counts two FLOPs for each.

    Convolutions and linear layers count, the bias of a linear layer as one more input (the convention of the released
    TAS code); norms, activations, pooling and additions do not. The model runs on the meta device: nothing is
    computed, parameters are untouched.

    Args:
        model: any module with one tensor argument.
        input_size: [C, H, W] of one image, or [N, C, H, W].

    Raises:
        UsageError: `input_size` has other than 3 or 4 entries.

    Example:
        >>> count_macs(torch.nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32))
        221184
    """
    if len(input_size) not in (3, 4):
        raise UsageError(f"count_macs: input_size must be (C, H, W) or (N, C, H, W), got {tuple(input_size)}")
    size = tuple(input_size) if len(input_size) == 4 else (1, *input_size)
    twin = copy.deepcopy(model).to("meta").eval()
    biases = 0

    def count_bias(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal biases
        biases += output.numel()

    for module in twin.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.register_forward_hook(count_bias)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(torch.empty(size, device="meta"))
    return counter.get_total_flops() // 2 + biases


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
