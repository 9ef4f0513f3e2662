"""Automatic mixed precision: which type, autocast, and the loss scaling that float16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from tas_fast.errors import UsageError


class Precision:
    """float32, or autocast to bfloat16 (no scaling) or float16 (scaled losses).

    Args:
        device: where the network runs.
        amp: autocast at all.
        dtype: "bfloat16", "float16", or "auto": bfloat16 where the hardware computes it and on the CPU, else float16.

    Raises:
        UsageError: float16 on the CPU, bfloat16 on a GPU without it.
    """

    def __init__(self, device: torch.device, amp: bool = False, dtype: str = "auto") -> None:
        self.device = device
        self.dtype = _amp_dtype(device, dtype) if amp else torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which forward passes run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of the (scaled) loss."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, clip_grad: float | None = None) -> None:
        """Update the optimizer's parameters; a step whose scaled gradients overflowed is left out.

        Args:
            clip_grad: largest norm of all gradients together; None: no clipping.
        """
        if clip_grad is not None:
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
        self.scaler.step(optimizer)
        self.scaler.update()

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.") + (" (autocast)" if self.dtype != torch.float32 else "")


def _amp_dtype(device: torch.device, name: str) -> torch.dtype:
    if device.type != "cuda":
        if name == "float16":
            raise UsageError("amp_dtype float16 needs a CUDA device; on the CPU use bfloat16 or auto")
        return torch.bfloat16
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and not native:
        raise UsageError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16; use amp_dtype float16 or auto"
        )
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and native) else torch.float16
