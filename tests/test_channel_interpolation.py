"""channel_interpolation: adaptive average pooling along channels."""

from functools import partial

import op_checks
import original_formulation as original
import pytest
import torch
from golden import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from tas_fast import ops
from tas_fast.ops.channel_interpolation import channel_interpolation_reference

OPERATOR = torch.ops.tas_fast.channel_interpolation.default
BACKWARD = torch.ops.tas_fast.channel_interpolation_backward.default
PAIRS = [(1, 1), (1, 5), (4, 16), (9, 16), (6, 14), (57, 64), (16, 9), (64, 1), (7, 3), (19, 19)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "out_channels"), PAIRS)
def test_matches_adaptive_pooling(c, out_channels, dtype, layout, device):
    x = torch.randn(2, c, 3, 5, device=device).to(dtype, memory_format=layout)
    operator = partial(ops.channel_interpolation, out_channels=out_channels)
    opponent = partial(original.channel_interpolation, out_channels=out_channels)
    op_checks.check_matches(operator, opponent, [x])
    op_checks.check_gradients(operator, opponent, [x])


@settings(deadline=None, max_examples=30)
@given(c=st.integers(1, 40), out_channels=st.integers(1, 40), batch=st.integers(1, 3), size=st.integers(1, 5))
def test_matches_adaptive_pooling_for_any_size(c, out_channels, batch, size):
    x = torch.randn(batch, c, size, size + 1, dtype=torch.float64)
    expected = original.channel_interpolation(x, out_channels)
    torch.testing.assert_close(ops.channel_interpolation(x, out_channels), expected)
    torch.testing.assert_close(channel_interpolation_reference(x, out_channels), expected)


@pytest.mark.parametrize(("c", "out_channels"), [(4, 6), (7, 3)])
def test_gradients_are_those_of_finite_differences(c, out_channels):
    x = torch.randn(2, c, 2, 2, dtype=torch.float64, requires_grad=True)
    operator = partial(ops.channel_interpolation, out_channels=out_channels)
    assert torch.autograd.gradcheck(operator, [x])
    assert torch.autograd.gradgradcheck(operator, [x])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("channels", [7, 3])
def test_passes_opcheck(channels, layout, device):
    x = torch.randn(2, 5, 3, 4, device=device).to(memory_format=layout).requires_grad_()
    op_checks.check_operator(OPERATOR, [x, channels])
    op_checks.check_operator(BACKWARD, [x, channels])


def test_compiles_for_varying_sizes():
    batches = [[torch.randn(n, c, 4, 4)] for n, c in ((2, 5), (3, 6), (4, 9))]
    op_checks.check_compiles(partial(ops.channel_interpolation, out_channels=8), batches)


@pytest.mark.parametrize(
    ("x", "out_channels", "words"),
    [
        (torch.ones(2, 3, 4), 2, r"x must be floating-point \[N, C, H, W\].*\(2, 3, 4\)"),
        (torch.ones(2, 0, 4, 4), 2, "C >= 1"),
        (torch.ones(2, 3, 4, 4, dtype=torch.int64), 2, "floating-point.*got int64"),
        (torch.ones(2, 3, 4, 4), 0, "out_channels must be at least 1, got 0"),
    ],
)
def test_rejects(x, out_channels, words):
    with pytest.raises(ValueError, match=words):
        ops.channel_interpolation(x, out_channels)


def test_equal_width_returns_the_input_itself():
    x = torch.randn(2, 5, 3, 3)
    assert ops.channel_interpolation(x, 5) is x


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_result_and_gradient_keep_the_layout(layout, device):
    x = torch.randn(2, 5, 3, 4, device=device).to(memory_format=layout).requires_grad_()
    out = ops.channel_interpolation(x, 8)
    (grad_x,) = torch.autograd.grad(out.sum(), x)
    assert op_checks.same_layout(out, x)
    assert op_checks.same_layout(BACKWARD(torch.ones_like(out), 5), x)
    assert grad_x.shape == x.shape


@pytest.mark.parametrize(("c", "out_channels"), PAIRS)
def test_rows_sum_to_one(c, out_channels, device):
    out = ops.channel_interpolation(torch.ones(1, c, 2, 2, dtype=torch.float64, device=device), out_channels)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_multiples_repeat_channels(device):
    x = torch.randn(2, 4, 3, 3, device=device)
    assert torch.equal(ops.channel_interpolation(x, 16), x.repeat_interleave(4, dim=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_special_values_stay_in_their_windows(value, device):
    x = torch.zeros(1, 4, 1, 1, device=device)
    x[0, 1] = value
    out = ops.channel_interpolation(x, 6).flatten()
    assert torch.equal(out.isfinite().cpu(), torch.tensor([True, False, False, True, True, True]))


def test_empty_batch(device):
    x = torch.randn(0, 4, 3, 3, device=device, requires_grad=True)
    out = ops.channel_interpolation(x, 6)
    out.sum().backward()
    assert out.shape == (0, 6, 3, 3)
    assert x.grad.shape == x.shape


def test_sliced_input(device):
    x = torch.randn(2, 9, 6, 6, device=device)[:, 1:6, ::2, 1:]
    torch.testing.assert_close(ops.channel_interpolation(x, 7), original.channel_interpolation(x, 7))


def test_golden_recordings():
    recorded = load_golden("cwi")
    for case, (c, out_channels) in enumerate(recorded["pairs"].tolist()):
        x = recorded[f"{case}.x"].requires_grad_()
        out = ops.channel_interpolation(x, out_channels)
        (grad_x,) = torch.autograd.grad(out, x, recorded[f"{case}.grad_y"])
        assert x.size(1) == c
        torch.testing.assert_close(out, recorded[f"{case}.y"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad_x, recorded[f"{case}.grad_x"], rtol=1e-5, atol=1e-6)
