"""The `tas_fast::` operator library: how an operator is declared and given its plain-torch implementation.

Schemas belong to Python, so every operator exists without a compiler. The reference serves all devices; a backend that
registers a kernel for a device (C++ for `CPU`, Triton or CUDA for `CUDA`) is preferred by the dispatcher.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

library = torch.library.Library("tas_fast", "FRAGMENT")


def define(schema: str) -> None:
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


def implement(name: str, reference: Callable[P, R]) -> None:
    """Register `reference` for every device that has no kernel of its own; autocast does not reach into it."""

    @wraps(reference)
    def implementation(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch._C._DisableAutocast():
            return reference(*args, **kwargs)

    library.impl(name, implementation, "CompositeExplicitAutograd")


def fake(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    return torch.library.register_fake(f"tas_fast::{name}", lib=library)


def differentiate(name: str, backward: Callable[..., object], setup_context: Callable[..., None]) -> None:
    torch.library.register_autograd(f"tas_fast::{name}", backward, setup_context=setup_context, lib=library)


def layout_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of a result like `x` [N, C, H, W]: contiguous where both formats fit."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums over data of `dtype` are kept: float32, and float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def wrong(operator: str, argument: str, expected: str, got: object) -> ValueError:
    return ValueError(f"{operator}: {argument} must be {expected}, got {got}")


def described(x: Tensor) -> str:
    """Return dtype and shape of `x` for a message."""
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
