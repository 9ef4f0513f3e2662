"""active_conv2d: a prefix of the filters applied to a prefix of their input channels."""

from functools import partial

import op_checks
import pytest
import torch
import torch.nn.functional as F

from tas_fast import ops

OPERATOR = torch.ops.tas_fast.active_conv2d.default
OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
]


def padded_convolution(x, weight, out_channels, **options):
    """Return the original's form: zero channels appended to `x`, every filter applied, the first results kept."""
    x = F.pad(x, (0, 0, 0, 0, 0, weight.size(1) * options.get("groups", 1) - x.size(1)))
    return F.conv2d(x, weight, None, **options)[:, :out_channels]


def sample(c_in=3, dtype=torch.float64, device="cpu", batch=2):
    """Return x [batch, c_in, 7, 6] and weight [8, 5, 3, 3]."""
    return [torch.randn(*shape, dtype=dtype, device=device) for shape in ((batch, c_in, 7, 6), (8, 5, 3, 3))]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("c_in", "out_channels"), [(3, 4), (5, 8), (1, 1)])
def test_matches_padded_convolution(c_in, out_channels, options, device):
    operator = partial(ops.active_conv2d, out_channels=out_channels, **options)
    opponent = partial(padded_convolution, out_channels=out_channels, **options)
    tensors = sample(c_in, device=device)
    op_checks.check_matches(operator, opponent, tensors)
    op_checks.check_gradients(operator, opponent, tensors)


@pytest.mark.parametrize(("groups", "c_in", "out_channels"), [(8, 3, 3), (4, 4, 4), (2, 4, 4)])
def test_matches_padded_convolution_in_groups(groups, c_in, out_channels, device):
    x, weight = torch.randn(2, c_in, 6, 6, device=device), torch.randn(8, 8 // groups, 3, 3, device=device)
    operator = partial(ops.active_conv2d, out_channels=out_channels, groups=groups)
    opponent = partial(padded_convolution, out_channels=out_channels, groups=groups)
    op_checks.check_matches(operator, opponent, [x.double(), weight.double()])
    op_checks.check_gradients(operator, opponent, [x.double(), weight.double()])


def test_gradients_are_those_of_finite_differences():
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(3, 3, 2, 2)
    op_checks.check_gradcheck(partial(ops.active_conv2d, out_channels=2), [x, weight])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_passes_opcheck(layout, device):
    x, weight = sample(dtype=torch.float32, device=device)
    x, weight = x.to(memory_format=layout).requires_grad_(), weight.requires_grad_()
    op_checks.check_operator(OPERATOR, [x, weight, 4, (1, 1), (1, 1), (1, 1), 1])


def test_compiles_for_varying_batches():
    batches = [sample(dtype=torch.float32, batch=batch) for batch in (2, 3, 5)]
    op_checks.check_compiles(partial(ops.active_conv2d, out_channels=4, padding=1), batches)


@pytest.mark.parametrize(
    ("x", "weight", "out_channels", "groups", "words"),
    [
        ((2, 3, 6), (8, 5, 3, 3), 4, 1, r"x must be \[N, C, H, W\], got \(2, 3, 6\)"),
        ((2, 3, 6, 6), (8, 5, 3), 4, 1, "weight must be"),
        ((2, 6, 6, 6), (8, 5, 3, 3), 4, 1, r"x must be .*C in 1\.\.5"),
        ((2, 3, 6, 6), (8, 5, 3, 3), 9, 1, r"out_channels must be in 1\.\.8, got 9"),
        ((2, 3, 6, 6), (8, 5, 3, 3), 0, 1, "out_channels must be.*got 0"),
        ((2, 3, 6, 6), (8, 5, 3, 3), 4, 3, "groups must be a divisor of C_out = 8, got 3"),
        ((2, 3, 6, 6), (8, 2, 3, 3), 4, 4, "x must be whole groups of 2 channels"),
        ((2, 4, 6, 6), (8, 2, 3, 3), 3, 4, "out_channels must be 4, the filters of the active groups, got 3"),
    ],
)
def test_rejects(x, weight, out_channels, groups, words):
    with pytest.raises(ValueError, match=f"active_conv2d: {words}"):
        ops.active_conv2d(torch.ones(x), torch.ones(weight), out_channels, groups=groups)


def test_weight_gradient_is_full_size_and_zero_outside_the_active_block(device):
    x, weight = sample(c_in=3, device=device)
    weight.requires_grad_()
    ops.active_conv2d(x, weight, 4).sum().backward()
    assert weight.grad.shape == weight.shape
    assert torch.count_nonzero(weight.grad) == torch.count_nonzero(weight.grad[:4, :3]) > 0


def test_autocast_lowers_the_precision(device):
    x, weight = sample(dtype=torch.float32, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert ops.active_conv2d(x, weight, 4).dtype == torch.bfloat16
