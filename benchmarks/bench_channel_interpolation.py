"""channel_interpolation against the original's formulation (adaptive_avg_pool3d) and the plain-torch reference."""

from collections.abc import Callable

import original_formulation as original
import pytest
import torch
from shapes import ALL, LayerShape
from torch import Tensor

from tas_fast import _backend, ops
from tas_fast.ops.channel_interpolation import channel_interpolation_reference

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


PROVIDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "original": original.channel_interpolation,
    "reference": channel_interpolation_reference,
    "tas_fast": ops.channel_interpolation,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
@pytest.mark.parametrize("shape", ALL, ids=lambda shape: shape.id)
def test_channel_interpolation(benchmark, compare, shape: LayerShape, mode: str, dtype: str, layout: str, device):
    assert _backend.serving(device.type)["channel_interpolation"] != "reference", _backend.summary(device.type)
    sizes = (shape.batch, shape.narrow, shape.size, shape.size)
    x = (
        torch.randn(sizes, device=device)
        .to(DTYPES[dtype], memory_format=LAYOUTS[layout])
        .requires_grad_(mode != "forward")
    )
    grad_out = torch.randn(shape.batch, shape.channels, shape.size, shape.size, device=device)
    grad_out = grad_out.to(DTYPES[dtype], memory_format=LAYOUTS[layout])
    torch.testing.assert_close(
        ops.channel_interpolation(x, shape.channels), original.channel_interpolation(x, shape.channels)
    )

    def run(provider: Callable[[Tensor, int], Tensor]) -> Callable[[], object]:
        if mode == "forward":
            return lambda: provider(x, shape.channels)
        return lambda: torch.autograd.grad(provider(x, shape.channels), x, grad_out)

    passes = 1 if mode == "forward" else 2
    benchmark.group = f"channel_interpolation {mode} {shape.id} {dtype} {layout} {device}"
    compare(
        {name: run(provider) for name, provider in PROVIDERS.items()},
        subject="tas_fast",
        bytes_floor=passes * (x.numel() + grad_out.numel()) * x.element_size(),
    )
