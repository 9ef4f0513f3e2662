"""The C++ kernels of fragment aggregation and depth aggregation: vector edges, tiles, threads, layouts, precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tas_fast import _backend, ops
from tas_fast.ops.fragment_aggregate import fragment_aggregate_backward_reference, fragment_aggregate_reference
from tas_fast.ops.weighted_interpolation_sum import weighted_interpolation_sum_reference

pytestmark = pytest.mark.skipif(not _backend.available("cpp"), reason="needs the extension _C")

FORWARD = torch.ops.tas_fast.fragment_aggregate.default
BACKWARD = torch.ops.tas_fast.fragment_aggregate_backward.default
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# Relative to the largest exact value: half a unit in the last place of the data, or sums in float32.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 5e-4}
EVERYTHING = [True] * 5
# Widths below, at and above the vectors of 4, 8 and 16 numbers, and windows that reach over two of them.
WIDTHS = [(13, 7), (16, 10), (17, 16), (16, 5, 11), (38, 64), (100, 29, 64), (8, 3), (3, 1), (70, 1)]
EIGHT = (19, 26, 32, 38, 45, 51, 58, 64)
# Smaller than a vector, odd, several tiles in a plane.
IMAGES = [(3, 2, 3), (2, 5, 7), (2, 8, 8), (2, 70, 65)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Let torch's allocations hold NaN, the extension's own included."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def arguments(
    widths: tuple[int, ...] = (64, 38),
    image: tuple[int, int, int] = (4, 16, 16),
    *,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.channels_last,
    residual: int | None = None,
    out_channels: int | None = None,
    training: bool = True,
    relu: bool = True,
    offset: float = 0.0,
) -> list[object]:
    """Return the arguments of the forward operator."""
    n, h, w = image
    c, rows, parameters = max(widths), len(widths), torch.promote_types(dtype, torch.float32)
    y = (torch.randn(n, c, h, w) + offset).to(dtype, memory_format=layout)
    r = None if residual is None else torch.randn(n, residual, h, w).to(dtype, memory_format=layout)
    weight, bias, mean = torch.randn(3, rows, c).to(parameters)
    var, probs = torch.rand(rows, c).to(parameters) + 0.5, torch.rand(rows).to(parameters)
    flags = [out_channels or c, relu, training, 0.1, 1e-5]
    return [y, torch.tensor(widths), probs, weight, bias, mean + offset, var, r, None, *flags]


def backward_arguments(forward: list, results: tuple[Tensor, ...], mask: list[bool] = EVERYTHING) -> list[object]:
    y, widths, probs, weight, bias, _, _, residual, index, out_channels, relu, training, _, _ = forward
    out, mean, rstd = results
    grad_out = torch.randn(out.shape).to(out)
    residual_channels = 0 if residual is None else residual.size(1)
    mask = [*mask[:4], mask[4] and relu and residual is not None]
    saved = [y, out if relu else None, widths, probs, weight, bias, mean, rstd, index]
    return [grad_out, *saved, out_channels, residual_channels, training, mask]


def doubled(values: list) -> list:
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in values]


def assert_close(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    assert ours.shape == exact.shape
    if ours.numel() > 0:
        scale = exact.abs().max().item() or 1.0
        assert (ours.double() - exact).abs().max().item() <= tolerance * scale


def check(forward: list, tolerance: float) -> None:
    """Compare result, running statistics and gradients with the reference in float64."""
    exact = doubled(forward)
    with poisoned_memory():
        results = FORWARD(*forward)
        backward = backward_arguments(forward, results)
        grads = BACKWARD(*backward)
    out, mean, rstd = fragment_aggregate_reference(*exact)
    c = int(forward[1].max())
    assert_close(results[0], out, tolerance)
    statistics = ((results[1][..., :c], mean[..., :c]), (results[2][..., :c], rstd[..., :c]))
    for ours, theirs in (*statistics, (forward[5], exact[5]), (forward[6], exact[6])):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-6)
    for ours, theirs in zip(grads, fragment_aggregate_backward_reference(*doubled(backward)), strict=True):
        assert_close(ours, theirs, 4 * tolerance)


def test_serves_the_cpu():
    served = _backend.serving("cpu")
    assert [served["fragment_aggregate"], served["weighted_interpolation_sum"]] == ["cpp", "cpp"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_matches_the_reference_at_the_edges_of_vectors(widths, image, layout, training):
    check(arguments(widths, image, layout=layout, training=training), 5e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("widths", [(64, 38), (13, 7), EIGHT], ids=str)
def test_matches_the_reference_in_every_type(widths, dtype, layout):
    check(arguments(widths, dtype=dtype, layout=layout, residual=max(widths)), TOLERANCE[dtype])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("residual", [3, 10, 16, 37, 38, 40, 64, 70])
@pytest.mark.parametrize("out_channels", [38, 45])
def test_residuals_of_any_width(out_channels, residual, layout):
    check(arguments((38, 20), (2, 6, 7), layout=layout, residual=residual, out_channels=out_channels), 2e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_several_threads_give_what_one_gives(layout):
    forward = arguments((64, 38, 51), layout=layout, residual=64)
    results = FORWARD(*forward)
    backward = backward_arguments(forward, results)
    grads = BACKWARD(*backward)
    with threads(3):
        for ours, alone in zip((*FORWARD(*forward), *BACKWARD(*backward)), (*results, *grads), strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_two_runs_give_the_same_bits(layout):
    forward = arguments((64, 38), layout=layout)
    with threads(2):
        results = FORWARD(*forward)
        backward = backward_arguments(forward, results)
        runs = [(*FORWARD(*forward), *BACKWARD(*backward)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("widths", [(16, 10), (13, 7), (64, 38)], ids=str)
def test_a_large_mean_costs_no_precision(widths, layout):
    forward = arguments(widths, layout=layout, relu=False, offset=1e4)
    exact = doubled(forward)
    out, _, rstd = FORWARD(*forward)
    expected_out, _, expected_rstd = fragment_aggregate_reference(*exact)
    torch.testing.assert_close(rstd.double(), expected_rstd, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.double(), expected_out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_statistics_of_images_of_different_brightness(layout):
    forward = arguments((16, 10), (8, 32, 32), layout=layout)
    forward[0] += 100 * torch.arange(8.0).view(8, 1, 1, 1)
    _, _, rstd = FORWARD(*forward)
    torch.testing.assert_close(rstd.double(), fragment_aggregate_reference(*doubled(forward))[2], rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nan_stays_in_the_channels_that_read_it(layout):
    forward = arguments((64, 32), layout=layout, relu=False)
    forward[0][0, 40] = float("nan")
    out, _, _ = FORWARD(*forward)
    assert [c for c in range(64) if out[:, c].isnan().any()] == [40]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_residual_and_gradient_may_have_the_other_layout(layout):
    forward = arguments(residual=64, layout=layout)
    other = LAYOUTS[1 - LAYOUTS.index(layout)]
    turned = [*forward[:7], forward[7].contiguous(memory_format=other), *forward[8:]]
    results = FORWARD(*forward)
    assert torch.equal(FORWARD(*turned)[0], results[0])
    backward = backward_arguments(forward, results)
    turned = [backward[0].contiguous(memory_format=other), *backward[1:]]
    for a, b in zip(BACKWARD(*turned), BACKWARD(*backward), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("width", [0, 9])
def test_refuses_widths_that_y_has_not(width):
    forward = arguments((8, 5))
    forward[1] = torch.tensor([8, width])
    before = forward[5].clone()
    with pytest.raises(RuntimeError, match=rf"fragment_aggregate: sampled widths must be in .* 1..8, got {width}"):
        FORWARD(*forward)
    assert torch.equal(forward[5], before)


@pytest.mark.parametrize("row", [-1, 2])
def test_refuses_rows_that_the_tables_have_not(row):
    forward = arguments((8, 5))
    forward[8] = torch.tensor([0, row])
    with pytest.raises(RuntimeError, match=rf"fragment_aggregate: index must be in 0..1, got {row}"):
        FORWARD(*forward)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("channels", [(16, 64, 38), (13, 13), (5, 100)], ids=str)
def test_depth_aggregation_matches_the_reference(channels, layout):
    maps = [torch.randn(3, c, 16, 17).contiguous(memory_format=layout) for c in channels]
    weights = torch.rand(len(channels))
    with poisoned_memory(), threads(2):
        out = ops.weighted_interpolation_sum(maps, weights)
    assert_close(out, weighted_interpolation_sum_reference([x.double() for x in maps], weights.double()), 1e-6)
