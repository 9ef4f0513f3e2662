"""fragment_aggregate, forward and backward, against the original's formulation, BatchNorm with ReLU, and eight copies.

The price of one BatchNorm is `batch_norm`; `floor` moves the tensor eight times, as often as any version must. With
TAS_FAST_BENCH_COMPILE=1 the original's formulation also runs under torch.compile, which takes minutes.
"""

import os
from collections.abc import Callable, Sequence

import op_checks
import original_formulation as original
import pytest
import torch
from shapes import LayerShape
from torch import Tensor

from tas_fast import _backend, ops
from tas_fast.ops.fragment_aggregate import fragment_aggregate_reference

SHAPES = (
    LayerShape("cifar-16x32", 64, 16, 10, 32),
    LayerShape("cifar-32x16", 64, 32, 19, 16),
    LayerShape("cifar-64x8", 64, 64, 38, 8),
    LayerShape("cifar-16x32-b256", 256, 16, 10, 32),
    LayerShape("imagenet-64x56", 32, 64, 38, 56),
    LayerShape("imagenet-256x14", 32, 256, 153, 14),
    LayerShape("imagenet-512x7", 32, 512, 307, 7),
)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPILE = os.environ.get("TAS_FAST_BENCH_COMPILE") == "1"

Layer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("fragments", [1, 2, 4, 8], ids=lambda k: f"K{k}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.id)
def test_fragment_aggregate(
    benchmark,
    compare,
    shape: LayerShape,
    dtype: str,
    layout: str,
    fragments: int,
    residual: bool,
    device: torch.device,
):
    assert _backend.serving(device.type)["fragment_aggregate"] != "reference", _backend.summary(device.type)
    batch = 256 if device.type == "cuda" else shape.batch
    tensors = _tensors(shape, batch, fragments, DTYPES[dtype], LAYOUTS[layout], residual, device)
    widths = _widths(shape, fragments)
    layers = _layers(shape.channels, widths, device)
    op_checks.check_matches(layers["tas_fast"], layers["original"], tensors)
    op_checks.check_gradients(layers["tas_fast"], layers["original"], tensors)

    other = next(value for key, value in LAYOUTS.items() if key != layout)
    turned = [x if x is None or x.dim() != 4 else x.contiguous(memory_format=other) for x in tensors]
    y = tensors[0]
    copy = torch.empty_like(y)
    calls = {name: _step(layer, tensors) for name, layer in layers.items()}
    calls["original_other_layout"] = _step(layers["original"], turned)
    calls["batch_norm"] = _batch_norm_step(tensors)
    calls["floor"] = lambda: [copy.copy_(y) for _ in range(4)]

    benchmark.group = f"fragment_aggregate {shape.id} {dtype} {layout} K{fragments} residual={residual} {device}"
    compare(calls, subject="tas_fast", bytes_floor=8 * y.numel() * y.element_size())
    ratio = benchmark.extra_info["ratio_to_subject"]
    benchmark.extra_info["ratio_of_original_in_best_layout"] = min(ratio["original"], ratio["original_other_layout"])
    benchmark.extra_info["fraction_of_floor"] = ratio["floor"]


def _widths(shape: LayerShape, fragments: int) -> list[int]:
    """Return the full width first, then `narrow`, or evenly spaced ones from 0.3 of the full width on."""
    if fragments <= 2:
        return [shape.channels, shape.narrow][:fragments]
    share = [1 - 0.7 * k / (fragments - 1) for k in range(fragments)]
    return [max(1, round(s * shape.channels)) for s in share]


def _tensors(
    shape: LayerShape,
    batch: int,
    fragments: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
    residual: bool,
    device: torch.device,
) -> list[Tensor | None]:
    """Return y, probs, weight, bias, residual."""
    size = (batch, shape.channels, shape.size, shape.size)
    y, other = (torch.randn(size, device=device).to(dtype, memory_format=layout) for _ in range(2))
    table = torch.randn(2, fragments, shape.channels, device=device)
    return [y, torch.rand(fragments, device=device), *table, other if residual else None]


def _layers(channels: int, widths: Sequence[int], device: torch.device) -> dict[str, Layer]:
    table = torch.zeros(len(widths), channels, device=device)
    on_device = torch.tensor(widths, device=device)

    def ours(y: Tensor, probs: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        options = {"residual": residual, "relu": True, "out_channels": channels}
        statistics = (table.to(weight.dtype), table.to(weight.dtype) + 1)
        return ops.fragment_aggregate(y, on_device, probs, weight, bias, *statistics, **options)

    def theirs(y: Tensor, probs: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        statistics = (table.to(weight.dtype), table.to(weight.dtype) + 1)
        return original.fragment_aggregate(y, widths, probs, weight, bias, *statistics, residual=residual, relu=True)

    def reference(y: Tensor, probs: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        arguments = (None, None, residual, None, channels, True, True, 0.1, 1e-5)
        return fragment_aggregate_reference(y, on_device, probs, weight, bias, *arguments)[0]

    layers: dict[str, Layer] = {"tas_fast": ours, "original": theirs, "reference": reference}
    if COMPILE:
        layers["original_compiled"] = torch.compile(theirs)
    return layers


def _batch_norm_step(tensors: Sequence[Tensor | None]) -> Callable[[], object]:
    y, residual = (None if x is None else x.detach().requires_grad_() for x in (tensors[0], tensors[-1]))
    norm = torch.nn.BatchNorm2d(y.size(1), device=y.device)
    inputs = [x for x in (y, residual, norm.weight, norm.bias) if x is not None]
    grad_out = torch.randn_like(y)

    def step() -> object:
        out = norm(y)
        return torch.autograd.grad((out if residual is None else out + residual).relu(), inputs, grad_out)

    return step


def _step(layer: Layer, tensors: Sequence[Tensor | None]) -> Callable[[], object]:
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    inputs = [x for x in leaves if x is not None]
    grad_out = torch.randn_like(tensors[0])
    return lambda: torch.autograd.grad(layer(*leaves), inputs, grad_out)
