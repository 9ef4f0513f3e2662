"""The CUDA kernels, Triton's and the library's, on a device: accuracy, equal bits, graphs, and no waiting for it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import op_checks
import pytest
import torch
from kernel_cases import CASES, INTERPOLATIONS, Case
from torch import Tensor

import tas_fast.ops  # noqa: F401  defines the operators
from tas_fast import _backend

pytestmark = pytest.mark.gpu

reference = importlib.import_module("tas_fast.ops.fragment_aggregate")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.channels_last, torch.contiguous_format]
LAYERS = {
    "16 channels": Case((9, 14), 16, 16, 16, shape=(64, 32, 32)),
    "64 channels": Case((64, 38), 64, 64, 64, shape=(8, 56, 56)),
    "64 channels, one fragment": Case((64,), 64, 64, 64, shape=(8, 56, 56)),
    "256 channels": Case((256, 153, 90, 77), 256, 256, 256, shape=(8, 14, 14)),
    "512 channels": Case((512, 307, 154, 230, 256, 333, 410, 487), 512, 512, 512, shape=(8, 7, 7)),
}


@dataclass(frozen=True)
class Implementation:
    forward: Callable[..., Any]
    backward: Callable[..., Any]


@pytest.fixture(params=["triton", "cuda"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    if request.param == "triton":
        if not _backend.available("triton"):
            pytest.skip(f"triton {_backend.status()['triton']}")
        kernels = importlib.import_module("tas_fast.kernels.fragment_aggregate")
        return Implementation(kernels.fragment_aggregate, kernels.fragment_aggregate_backward)
    if _backend.serving("cuda")["fragment_aggregate"] != "cuda":
        pytest.skip(f"cuda {_backend.status()['cuda']}")
    operators = torch.ops.tas_fast
    return Implementation(operators.fragment_aggregate.default, operators.fragment_aggregate_backward.default)


def cast(arguments: list[Any], device: str, dtype: torch.dtype | None = None) -> list[Any]:
    """Copy tensors to a device, floating ones to `dtype` if given."""
    moved = []
    for x in arguments:
        if isinstance(x, Tensor):
            x = x.to(device, dtype if dtype and x.is_floating_point() else x.dtype, copy=True)
        moved.append(x)
    return moved


def check(implementation: Implementation, case: Case) -> None:
    """As close to the reference in float64 as the reference in the precision of the parameters."""
    arguments = case.forward_arguments()
    ours, rough, exact = (
        cast(arguments, "cuda"),
        cast(arguments, "cpu", torch.float32),
        cast(arguments, "cpu", torch.float64),
    )
    with torch.no_grad():
        results = implementation.forward(*ours)
    rough_results = reference.fragment_aggregate_reference(*rough)
    exact_results = reference.fragment_aggregate_reference(*exact)
    compare([*results, *ours[5:7]], [*rough_results, *rough[5:7]], [*exact_results, *exact[5:7]])
    # The mask of the rectification is that of the result on the device: values next to zero round either way.
    backward = case.backward_arguments(ours, results)
    gradients = implementation.backward(*backward)
    rough_gradients = reference.fragment_aggregate_backward_reference(*cast(backward, "cpu", torch.float32))
    exact_gradients = reference.fragment_aggregate_backward_reference(*cast(backward, "cpu", torch.float64))
    compare(gradients, rough_gradients, exact_gradients)


def compare(ours: Any, rough: Any, exact: Any) -> None:
    for result, theirs, truth in zip(ours, rough, exact, strict=True):
        op_checks.assert_as_accurate(result.cpu(), theirs.to(result.dtype), truth)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_small_cases_are_as_accurate_as_the_reference(implementation, name, training, dtype, layout):
    check(implementation, replace(CASES[name], training=training, dtype=dtype, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_as_accurate_as_the_reference(implementation, name, dtype, layout):
    check(implementation, replace(LAYERS[name], dtype=dtype, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_two_runs_give_the_same_bits(implementation, name, layout):
    case = replace(LAYERS[name], layout=layout, dtype=torch.bfloat16)
    arguments = case.forward_arguments("cuda")
    first, second = (implementation.forward(*cast(arguments, "cuda")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    backward = case.backward_arguments(arguments, first)
    gradients, again = (implementation.backward(*backward) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


@pytest.mark.parametrize("name", ["16 channels", "512 channels"])
def test_nothing_waits_for_the_device(implementation, name):
    arguments = LAYERS[name].forward_arguments("cuda")
    warm = implementation.forward(*arguments)
    backward = LAYERS[name].backward_arguments(arguments, warm)
    implementation.backward(*backward)
    torch.cuda.set_sync_debug_mode("error")
    try:
        implementation.forward(*arguments)
        implementation.backward(*backward)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["16 channels", "256 channels"])
def test_a_captured_graph_follows_widths_and_probabilities(implementation, name):
    case = LAYERS[name]
    arguments = case.forward_arguments("cuda")
    backward = case.backward_arguments(arguments, implementation.forward(*arguments))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        implementation.backward(*backward)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = implementation.forward(*arguments)
        captured = [*backward[:2], results[0], *backward[3:7], results[1], results[2], *backward[9:]]
        gradients = implementation.backward(*captured)
    arguments[1].copy_(arguments[1].flip(0).clamp(max=11))
    arguments[2].uniform_()
    graph.replay()
    torch.cuda.synchronize()
    eager = implementation.forward(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(results, eager, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, implementation.backward(*captured), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("widths", INTERPOLATIONS, ids=str)
def test_interpolation_and_depth_aggregation_of_triton(widths, layout):
    if not _backend.available("triton"):
        pytest.skip(f"triton {_backend.status()['triton']}")
    interpolation, depth = (
        importlib.import_module(f"tas_fast.kernels.{name}")
        for name in ("channel_interpolation", "weighted_interpolation_sum")
    )
    truth, depth_truth = (
        importlib.import_module(f"tas_fast.ops.{name}")
        for name in ("channel_interpolation", "weighted_interpolation_sum")
    )
    narrow, wide = (torch.randn(4, c, 9, 11).contiguous(memory_format=layout) for c in widths)
    exact = truth.channel_interpolation_reference(narrow.double(), widths[1])
    torch.testing.assert_close(interpolation.channel_interpolation(narrow.cuda(), widths[1]).cpu().double(), exact)
    exact = truth.channel_interpolation_backward_reference(wide.double(), widths[0])
    ours = interpolation.channel_interpolation_backward(wide.cuda(), widths[0])
    torch.testing.assert_close(ours.cpu().double(), exact)
    tensors, weights = [narrow, wide] * 5, torch.rand(10)
    exact = depth_truth.weighted_interpolation_sum_reference([x.double() for x in tensors], weights.double())
    ours = depth.weighted_interpolation_sum([x.cuda() for x in tensors], weights.cuda())
    torch.testing.assert_close(ours.cpu().double(), exact, rtol=1e-5, atol=1e-5)
