"""Triton launchers as CUDA kernels of the operators that have none from the CUDA library.

A launcher's module is imported at its first call, so importing the operators neither imports nor needs Triton. Types
and sizes that the kernels do not know, float64 and empty tensors among them, go to the reference.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tas_fast import _backend
from tas_fast.ops._library import library

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_PIXELS = 2**31 - 2**16  # counted in 32 bits
_OPERATORS = ("channel_interpolation", "fragment_aggregate", "weighted_interpolation_sum")


def register() -> None:
    """Register launchers where Triton may serve; the CUDA library, if loaded before, keeps what it has."""
    if not _backend.available("triton"):
        return
    for operator in _OPERATORS:
        # Not by an import statement: the package exports a function under the module's name.
        module = importlib.import_module(f"tas_fast.ops.{operator}")
        for name in (operator, f"{operator}_backward"):
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"tas_fast::{name}", "CUDA"):
                library.impl(name, _launcher(name, getattr(module, f"{name}_reference")), "CUDA")


def _launcher(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        with torch._C._DisableAutocast():
            if not _known(args):
                return reference(*args)
            module = importlib.import_module(f"tas_fast.kernels.{name.removesuffix('_backward')}")
            with torch.cuda.device(_first(args).device):
                return getattr(module, name)(*args)

    return launch


def _known(args: tuple[Any, ...]) -> bool:
    """Whether the kernels take every image batch among the arguments."""
    flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else (arg,))]
    batches = [x for x in flat if isinstance(x, Tensor) and x.dim() == 4]
    return all(x.dtype in _TYPES and 0 < x.numel() // max(x.size(1), 1) < _MOST_PIXELS for x in batches)


def _first(args: tuple[Any, ...]) -> Tensor:
    return args[0] if isinstance(args[0], Tensor) else args[0][0]
