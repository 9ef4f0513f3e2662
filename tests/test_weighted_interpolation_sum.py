"""weighted_interpolation_sum: the weighted sum of feature maps after aligning their channels."""

import op_checks
import original_formulation as original
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tas_fast import ops

OPERATOR = torch.ops.tas_fast.weighted_interpolation_sum.default
BACKWARD = torch.ops.tas_fast.weighted_interpolation_sum_backward.default
LAYOUTS = [torch.contiguous_format, torch.channels_last]
WIDTHS = [(5,), (5, 5), (3, 5, 8), (8, 3), (1, 7, 2)]


def operator(weights, *tensors):
    return ops.weighted_interpolation_sum(tensors, weights)


def opponent(weights, *tensors):
    return original.weighted_interpolation_sum(tensors, weights)


def sample(widths, dtype=torch.float32, layout=torch.contiguous_format, device="cpu", batch=2):
    """Return weights and maps."""
    weights = torch.rand(len(widths), dtype=torch.promote_types(dtype, torch.float32), device=device)
    maps = [torch.randn(batch, width, 3, 4, device=device).to(dtype, memory_format=layout) for width in widths]
    return [weights, *maps]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_matches_sum_of_pooled_maps(widths, dtype, layout, device):
    tensors = sample(widths, dtype, layout, device)
    op_checks.check_matches(operator, opponent, tensors)
    op_checks.check_gradients(operator, opponent, tensors)


@settings(deadline=None, max_examples=20)
@given(widths=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_matches_sum_of_pooled_maps_for_any_widths(widths):
    op_checks.check_matches(operator, opponent, sample(widths, torch.float64))


def test_gradients_are_those_of_finite_differences():
    op_checks.check_gradcheck(operator, sample((3, 5, 8), torch.float64))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_passes_opcheck(layout, device):
    weights, *maps = (x.requires_grad_() for x in sample((3, 5, 4), layout=layout, device=device))
    op_checks.check_operator(OPERATOR, [maps, weights])


@pytest.mark.parametrize("mask", [[True, True], [False, True], [True, False]], ids=str)
def test_backward_passes_opcheck(mask, device):
    weights, *maps = sample((3, 5, 4), layout=torch.channels_last, device=device)
    op_checks.check_operator(BACKWARD, [torch.randn(2, 5, 3, 4, device=device), maps, weights, mask])


def test_compiles_for_varying_batches():
    op_checks.check_compiles(operator, [sample((3, 5, 8), batch=batch) for batch in (2, 3, 5)])


@pytest.mark.parametrize(
    ("tensors", "weights", "words"),
    [
        ([], torch.ones(0), "tensors must be one or more"),
        ([torch.ones(2, 3, 4)], torch.ones(1), r"tensors must be floating-point \[N, C_d, H, W\]"),
        ([torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 5)], torch.ones(2), r"alike in all but C_d.*\(2, 3, 4, 5\)"),
        ([torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4).half()], torch.ones(2), "alike.*float16"),
        ([torch.ones(2, 3, 4, 4)], torch.ones(2), r"weights must be \[D\] with D = 1"),
        ([torch.ones(2, 3, 4, 4)], torch.ones(1).half(), "weights must be torch.float32"),
    ],
)
def test_rejects(tensors, weights, words):
    with pytest.raises(ValueError, match=f"weighted_interpolation_sum: .*{words}"):
        ops.weighted_interpolation_sum(tensors, weights)


def test_one_map_of_weight_one_is_unchanged(device):
    x = torch.randn(2, 5, 3, 3, device=device)
    assert torch.equal(ops.weighted_interpolation_sum([x], torch.ones(1, device=device)), x)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_result_has_the_layout_of_the_first_map(layout, device):
    _, first, *rest = sample((3, 5), layout=layout, device=device)
    out = ops.weighted_interpolation_sum([first, *(x.contiguous() for x in rest)], torch.ones(2, device=device))
    assert op_checks.same_layout(out, first)


def test_empty_batch(device):
    weights, *maps = (x.requires_grad_() for x in sample((3, 5), batch=0, device=device))
    out = ops.weighted_interpolation_sum(maps, weights)
    out.sum().backward()
    assert out.shape == (0, 5, 3, 4)
    assert torch.equal(weights.grad, torch.zeros_like(weights))


def test_only_needed_gradients_are_computed(device):
    weights, *maps = sample((3, 5), device=device)
    grads, grad_weights = BACKWARD(torch.randn(2, 5, 3, 4, device=device), maps, weights, [False, True])
    assert grads == []
    assert grad_weights.shape == (2,)
