"""Triton kernels run by the interpreter on the CPU, held against the references; collected by test_kernels_interpreted.

TRITON_INTERPRET must be 1 before Triton is imported. The interpreter multiplies bfloat16 wrongly and truncates, so
float32 and float16 stand for it; float16 is sent through the arithmetic of bfloat16 as well.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from kernel_cases import BLOCKED_CASES, CASES, INTERPOLATIONS, Case
from op_checks import same_layout
from torch import Tensor

import tas_fast.ops  # noqa: F401  defines the operators
from tas_fast.kernels import _tiles, channel_interpolation, fragment_aggregate, weighted_interpolation_sum

# The package exports functions under the modules' names.
reference = importlib.import_module("tas_fast.ops.fragment_aggregate")
reference_interpolation = importlib.import_module("tas_fast.ops.channel_interpolation")
reference_sum = importlib.import_module("tas_fast.ops.weighted_interpolation_sum")

LAYOUTS = [torch.channels_last, torch.contiguous_format]
TOLERANCE = {torch.float32: 3e-5, torch.float16: 6e-3}


def assert_close(results: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.dim() != 4 or same_layout(ours, theirs)
        scale = max(theirs.abs().max().item(), 1.0) if theirs.numel() else 1.0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype] * scale)


def check_aggregate(case: Case) -> None:
    arguments = case.forward_arguments()
    ours, theirs = ([x.clone() if isinstance(x, Tensor) else x for x in arguments] for _ in range(2))
    ours[0], theirs[0] = arguments[0], arguments[0]
    expected = reference.fragment_aggregate_reference(*theirs)
    assert_close(fragment_aggregate.fragment_aggregate(*ours), expected, case.dtype)
    assert_close(ours[5:7], theirs[5:7], torch.float32)
    backward = case.backward_arguments(arguments, expected)
    gradients = reference.fragment_aggregate_backward_reference(*backward)
    assert_close(fragment_aggregate.fragment_aggregate_backward(*backward), gradients, case.dtype)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_aggregation_matches_the_reference(name, training, layout):
    check_aggregate(replace(CASES[name], training=training, layout=layout))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", BLOCKED_CASES)
def test_aggregation_in_several_blocks_of_channels(name, training, monkeypatch):
    monkeypatch.setattr(_tiles, "WIDEST_BLOCK", 16)
    check_aggregate(replace(BLOCKED_CASES[name], training=training))


@pytest.mark.parametrize("split", [True, False], ids=["split coefficients", "tf32"])
@pytest.mark.parametrize("name", ["table, residual", "single, padded"])
def test_aggregation_of_half_precision(name, split, monkeypatch):
    monkeypatch.setattr(fragment_aggregate, "SPLIT_TYPES", {torch.float16} if split else set())
    check_aggregate(replace(CASES[name], dtype=torch.float16))


@pytest.mark.parametrize("fragments", [1, 2])
def test_aggregation_merges_many_chunks_of_pixels(fragments, monkeypatch):
    monkeypatch.setattr(_tiles, "PROGRAMS", 3)
    check_aggregate(Case((2, 3)[-fragments:], 3, 3, shape=(5, 41, 37)))


def test_statistics_survive_a_large_mean():
    case = Case((4,), 4, 4, relu=False)
    arguments = case.forward_arguments()
    arguments[0] += 1e4
    _, mean, rstd = fragment_aggregate.fragment_aggregate(*arguments)
    exact = arguments[0].double()
    torch.testing.assert_close(mean, exact.mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    expected = (exact.var((0, 2, 3), unbiased=False) + 1e-5).rsqrt().float()
    torch.testing.assert_close(rstd, expected, rtol=1e-5, atol=0)


def test_nan_stays_nan_in_its_channel_and_rectification():
    case = Case((4,), 4, 4, training=False)
    arguments = case.forward_arguments()
    arguments[0][1, 2, 0, 0] = float("nan")
    out, _, _ = fragment_aggregate.fragment_aggregate(*arguments)
    assert out.isnan().nonzero().tolist() == [[1, 2, 0, 0]]


def test_tensor_of_another_device_is_named():
    arguments = Case((3, 6), 6, 6).forward_arguments()
    arguments[2] = arguments[2].to("meta")
    with pytest.raises(ValueError, match="fragment_aggregate: probs must be on cpu like y, got meta"):
        fragment_aggregate.fragment_aggregate(*arguments)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("widths", INTERPOLATIONS, ids=str)
def test_interpolation_matches_the_reference(widths, layout):
    narrow, wide = (torch.randn(2, c, 3, 5).contiguous(memory_format=layout) for c in widths)
    expected = reference_interpolation.channel_interpolation_reference(narrow, widths[1])
    assert_close([channel_interpolation.channel_interpolation(narrow, widths[1])], [expected], torch.float32)
    expected = reference_interpolation.channel_interpolation_backward_reference(wide, widths[0])
    assert_close([channel_interpolation.channel_interpolation_backward(wide, widths[0])], [expected], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("widths", [(5,), (7, 3, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)], ids=str)
def test_depth_aggregation_matches_the_reference(widths, dtype):
    tensors = [torch.randn(2, c, 3, 5).to(dtype, memory_format=torch.channels_last) for c in widths]
    weights = torch.rand(len(widths))
    expected = reference_sum.weighted_interpolation_sum_reference(tensors, weights)
    assert_close([weighted_interpolation_sum.weighted_interpolation_sum(tensors, weights)], [expected], dtype)
    for mask in ([True, True], [True, False], [False, True]):
        arguments = (torch.randn_like(expected), tensors, weights, mask)
        grads, grad_weights = weighted_interpolation_sum.weighted_interpolation_sum_backward(*arguments)
        their_grads, their_weights = reference_sum.weighted_interpolation_sum_backward_reference(*arguments)
        assert_close([*grads, grad_weights], [*their_grads, their_weights], dtype)
