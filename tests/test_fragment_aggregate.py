"""fragment_aggregate and fused_batch_norm: BatchNorms of channel prefixes, aligned, mixed, added and rectified."""

from dataclasses import dataclass, replace

import op_checks
import original_formulation as original
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tas_fast import ops
from tas_fast.ops.fragment_aggregate import fragment_aggregate_backward_reference, fragment_aggregate_reference

OPERATOR = torch.ops.tas_fast.fragment_aggregate.default
BACKWARD = torch.ops.tas_fast.fragment_aggregate_backward.default
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@dataclass(frozen=True)
class Sample:
    widths: tuple[int, ...]
    index: tuple[int, ...] | None = None
    channels: int = 8  # of the tables
    y_channels: int | None = None
    out_channels: int | None = None
    residual_channels: int | None = None
    shape: tuple[int, int, int] = (3, 4, 5)  # N, H, W
    relu: bool = True
    training: bool = True
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    device: torch.device | str = "cpu"

    @property
    def sampled(self) -> list[int]:
        return [self.widths[row] for row in self.index] if self.index else list(self.widths)

    def tensors(self) -> list[Tensor | None]:
        """Return y, probs, weight, bias, residual."""
        n, h, w = self.shape
        y = torch.randn(n, self.y_channels or self.channels, h, w, device=self.device)
        residual = None
        if self.residual_channels:
            residual = torch.randn(n, self.residual_channels, h, w, device=self.device)
            residual = residual.to(self.dtype, memory_format=self.layout)
        probs = torch.rand(len(self.sampled)).to(self.device, self.parameter_dtype)
        table = torch.randn(2, len(self.widths), self.channels).to(self.device, self.parameter_dtype)
        return [y.to(self.dtype, memory_format=self.layout), probs, *table, residual]

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the same running mean and variance for the same sample, whatever the dtype."""
        ramp = torch.arange(len(self.widths) * self.channels, dtype=torch.float64, device=self.device)
        ramp = ramp.view(len(self.widths), self.channels)
        return ramp.sin().to(dtype), (ramp.cos() + 1.5).to(dtype)

    def operator(self, y: Tensor, probs: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        return ops.fragment_aggregate(
            y,
            torch.tensor(self.widths, device=y.device),
            probs,
            weight,
            bias,
            *self.statistics(weight.dtype),
            residual=residual,
            relu=self.relu,
            training=self.training,
            index=torch.tensor(self.index, device=y.device) if self.index else None,
            out_channels=self.out_channels,
        )

    def opponent(self, y: Tensor, probs: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        options = {"relu": self.relu, "training": self.training, "index": self.index, "residual": residual}
        statistics = self.statistics(weight.dtype)
        out = original.fragment_aggregate(y, self.widths, probs, weight, bias, *statistics, **options)
        return original.pad_channels(out, max(out.size(1), self.out_channels or 0))

    def arguments(self) -> list[object]:
        """Return the arguments of the registered operator, leaves with gradients."""
        tensors = [x if x is None else x.requires_grad_() for x in self.tensors()]
        y, probs, weight, bias, residual = tensors
        index = torch.tensor(self.index, device=self.device) if self.index else None
        out_channels = self.out_channels or max(self.sampled)
        widths = torch.tensor(self.widths, device=self.device)
        statistics = self.statistics(self.parameter_dtype)
        flags = (out_channels, self.relu, self.training, 0.1, 1e-5)
        return [y, widths, probs, weight, bias, *statistics, residual, index, *flags]


SAMPLES = {
    "two fragments": Sample((3, 6), y_channels=6),
    "first wider": Sample((8, 3)),
    "equal widths": Sample((5, 5), y_channels=5),
    "width one": Sample((1, 8)),
    "only width one": Sample((1, 1), y_channels=1),
    "one channel padded": Sample((1, 1), y_channels=1, out_channels=3),
    "single": Sample((5,), y_channels=5),
    "single padded": Sample((5,), y_channels=8, out_channels=8),
    "single of three": Sample((3, 5, 8), index=(1,), y_channels=5),
    "eight fragments": Sample((4, 6, 8, 9, 11, 12, 14, 16), channels=16),
    "table": Sample((3, 5, 8), index=(2, 0)),
    "table twice the same": Sample((3, 5, 8), index=(1, 1), y_channels=5),
    "more channels than read": Sample((3, 5), y_channels=8),
    "padded": Sample((3, 5), y_channels=8, out_channels=8),
    "padded beyond y": Sample((3, 5), y_channels=5, out_channels=8),
    "narrow residual": Sample((3, 6), residual_channels=4),
    "wide residual": Sample((3, 6), residual_channels=7),
    "residual into padding": Sample((3, 5), out_channels=8, residual_channels=7),
    "residual beyond padding": Sample((3, 5), out_channels=6, residual_channels=8),
    "single with residual": Sample((6,), residual_channels=9),
    "one row of pixels": Sample((2, 7), shape=(5, 1, 1)),
    "one image": Sample((2, 7), shape=(1, 3, 2)),
}
CASES = [
    pytest.param(replace(sample, training=training, relu=relu), id=f"{name}-{training=}-{relu=}")
    for name, sample in SAMPLES.items()
    for training, relu in ((True, True), (False, True), (True, False))
]
DATA_TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("sample", CASES)
def test_matches_batch_norms(sample, device):
    sample = replace(sample, device=device)
    tensors = sample.tensors()
    op_checks.check_matches(sample.operator, sample.opponent, tensors)
    op_checks.check_gradients(sample.operator, sample.opponent, tensors)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DATA_TYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["table", "single with residual", "residual into padding"])
def test_matches_batch_norms_in_every_type_and_layout(name, training, dtype, layout, device):
    sample = replace(SAMPLES[name], training=training, dtype=dtype, layout=layout, device=device)
    tensors = sample.tensors()
    op_checks.check_matches(sample.operator, sample.opponent, tensors)
    op_checks.check_gradients(sample.operator, sample.opponent, tensors)


@st.composite
def samples(draw):
    channels = draw(st.integers(1, 20))
    widths = tuple(draw(st.lists(st.integers(1, channels), min_size=1, max_size=4)))
    index = draw(st.none() | st.lists(st.integers(0, len(widths) - 1), min_size=1, max_size=3).map(tuple))
    largest = max(widths[row] for row in index) if index else max(widths)
    return Sample(
        widths,
        index,
        channels,
        y_channels=draw(st.integers(largest, channels)),
        out_channels=draw(st.none() | st.integers(largest, channels)),
        residual_channels=draw(st.none() | st.integers(1, channels + 3)),
        shape=(draw(st.integers(2, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        relu=draw(st.booleans()),
        training=draw(st.booleans()),
        dtype=torch.float64,
        layout=draw(st.sampled_from(LAYOUTS)),
    )


@settings(deadline=None, max_examples=40)
@given(sample=samples())
def test_matches_batch_norms_for_any_widths(sample):
    tensors = sample.tensors()
    op_checks.check_matches(sample.operator, sample.opponent, tensors)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["table", "table twice the same", "residual into padding", "single with residual"])
def test_gradients_are_those_of_finite_differences(name, training):
    sample = replace(SAMPLES[name], training=training, shape=(2, 2, 2), dtype=torch.float64)
    op_checks.check_gradcheck(sample.operator, sample.tensors())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["table", "residual beyond padding", "single with residual"])
def test_passes_opcheck(name, training, layout, device):
    sample = replace(SAMPLES[name], training=training, layout=layout, device=device)
    op_checks.check_operator(OPERATOR, sample.arguments())


@pytest.mark.parametrize(
    "mask", [[True] * 5, [False, True, False, False, False], [True, False, True, True, False]], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_backward_passes_opcheck(training, mask, device):
    sample = replace(SAMPLES["residual into padding"], training=training, layout=torch.channels_last, device=device)
    arguments = [x.detach() if isinstance(x, Tensor) else x for x in sample.arguments()]
    y, widths, probs, weight, bias, _, _, _, index, *_ = arguments
    out, mean, rstd = OPERATOR(*arguments)
    inputs = [torch.randn_like(out), y, out, widths, probs, weight, bias, mean, rstd, index, 8, 7, training, mask]
    op_checks.check_operator(BACKWARD, inputs)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_for_varying_batches(training):
    sample = replace(SAMPLES["table"], out_channels=8, residual_channels=6, training=training)
    batches = [replace(sample, shape=(n, 4, 4)).tensors() for n in (2, 3, 5)]
    op_checks.check_compiles(sample.operator, batches)


def test_compiled_call_updates_running_statistics():
    sample = replace(SAMPLES["table"], out_channels=8)
    arguments = [x.detach() if isinstance(x, Tensor) else x for x in sample.arguments()]
    means = {}
    for name, function in (
        ("eager", OPERATOR),
        ("compiled", torch.compile(OPERATOR, fullgraph=True, backend="aot_eager")),
    ):
        running = sample.statistics(torch.float32)
        function(*arguments[:5], *running, *arguments[7:])
        means[name] = running
    torch.testing.assert_close(means["compiled"], means["eager"])


def _valid() -> dict[str, object]:
    table = torch.ones(2, 8)
    return {
        "y": torch.randn(2, 8, 3, 3),
        "widths": torch.tensor([3, 8]),
        "probs": torch.ones(2),
        "weight": table,
        "bias": table.clone(),
        "running_mean": table.clone(),
        "running_var": table.clone(),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": torch.ones(2, 8, 3)}, r"y must be floating-point \[N, C, H, W\].*\(2, 8, 3\)"),
        ({"y": torch.ones(2, 8, 3, 3, dtype=torch.int32)}, "floating-point.*int32"),
        ({"y": torch.ones(1, 8, 1, 1)}, "more than one value per channel"),
        ({"y": torch.ones(2, 7, 3, 3)}, r"C >= max\(widths\) = 8, got"),
        ({"y": torch.ones(2, 8, 3, 3, dtype=torch.float64)}, "weight must be torch.float64"),
        ({"widths": torch.tensor([3.0, 8.0])}, "widths must be int32 or int64"),
        ({"probs": torch.ones(3)}, r"probs must be \[K\] with K = 2 fragments.*got \(3,\)"),
        ({"probs": torch.ones(2, dtype=torch.bfloat16)}, "probs must be torch.float32"),
        ({"weight": torch.ones(8)}, r"weight must be \[n, C\] with n = 2 and C >= 8, got \(8,\)"),
        ({"bias": torch.ones(2, 7)}, "bias must be.*C >= 8"),
        ({"running_var": torch.ones(3, 8)}, "running_var must be.*n = 2"),
        ({"running_var": None}, "both given or both None"),
        ({"running_mean": None, "running_var": None, "training": False}, "running_mean must be given in evaluation"),
        ({"residual": torch.ones(2, 8, 3, 2)}, "residual must be.*fits y"),
        ({"residual": torch.ones(2, 8, 3, 3, dtype=torch.float16)}, "residual must be torch.float32 like y"),
        ({"index": torch.tensor([0.0, 1.0])}, "index must be int64"),
        ({"index": torch.tensor([0, 1, 1])}, "K = 3 fragments"),
        ({"out_channels": 0}, "out_channels must be at least 1"),
    ],
)
def test_rejects(changes, words):
    with pytest.raises(ValueError, match=f"fragment_aggregate: .*{words}"):
        ops.fragment_aggregate(**{**_valid(), **changes})


@pytest.mark.parametrize("index", [(2, 0), (1, 1), (1, 1, 0)], ids=str)
@pytest.mark.parametrize("y_channels", [8, 10])
def test_updates_running_statistics_of_the_sampled_prefixes(index, y_channels, device):
    widths, n = (3, 5, 8), 3
    y = torch.randn(4, y_channels, 3, 3, device=device)
    ours, theirs = ([torch.full((n, 10), float(v), device=device) for v in (0, 1)] for _ in range(2))
    table, probs = torch.ones(n, 10, device=device), torch.ones(len(index), device=device)
    width_tensor, index_tensor = torch.tensor(widths, device=device), torch.tensor(index, device=device)
    ops.fragment_aggregate(y, width_tensor, probs, table, table, *ours, momentum=0.3, index=index_tensor)
    original.fragment_aggregate(y, widths, probs, table, table, *theirs, momentum=0.3, index=index)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_evaluation_leaves_running_statistics_alone(device):
    sample = replace(SAMPLES["table"], training=False, device=device)
    arguments = sample.arguments()
    OPERATOR(*arguments)
    assert torch.equal(torch.stack(arguments[5:7]), torch.stack(sample.statistics(torch.float32)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual_channels", [None, 6])
def test_single_fragment_is_batch_norm(training, residual_channels, device):
    y = torch.randn(3, 6, 4, 4, device=device)
    residual = torch.randn(3, 6, 4, 4, device=device) if residual_channels else None
    weight, bias = torch.randn(2, 6, device=device)
    ours, theirs = ([torch.zeros(6, device=device), torch.ones(6, device=device)] for _ in range(2))
    out = ops.fused_batch_norm(y, weight, bias, *ours, residual=residual, relu=True, training=training)
    expected = F.batch_norm(y, *theirs, weight, bias, training)
    torch.testing.assert_close(out, (expected if residual is None else expected + residual).relu())
    torch.testing.assert_close(ours, theirs)


def test_fused_batch_norm_rejects_tables():
    table = torch.ones(1, 6)
    with pytest.raises(ValueError, match=r"fused_batch_norm: weight and bias must be \[C\] with C = 6"):
        ops.fused_batch_norm(torch.ones(2, 6, 3, 3), table, table, None, None)


def test_order_of_fragments_does_not_matter(device):
    sample = replace(SAMPLES["table"], dtype=torch.float64, device=device)
    y, probs, weight, bias, _ = sample.tensors()
    turned = replace(sample, index=sample.index[::-1])
    torch.testing.assert_close(
        sample.operator(y, probs, weight, bias, None), turned.operator(y, probs.flip(0), weight, bias, None)
    )


@pytest.mark.parametrize("training", [True, False])
def test_linear_in_probabilities(training, device):
    sample = replace(SAMPLES["table"], relu=False, training=training, dtype=torch.float64, device=device)
    y, probs, weight, bias, _ = sample.tensors()
    parts = [sample.operator(y, probs * mask, weight, bias, None) for mask in torch.eye(2, device=device)]
    torch.testing.assert_close(sample.operator(y, probs, weight, bias, None), parts[0] + parts[1])


@pytest.mark.parametrize("training", [True, False])
def test_channels_from_the_largest_width_on_have_no_influence(training, device):
    sample = replace(SAMPLES["padded"], training=training, device=device)
    y, probs, weight, bias, _ = sample.tensors()
    other = y.clone()
    other[:, 5:] = 100 * torch.randn_like(y[:, 5:])
    y.requires_grad_()
    out = sample.operator(y, probs, weight, bias, None)
    (grad_y,) = torch.autograd.grad(out.square().sum(), y)
    assert torch.equal(out, sample.operator(other, probs, weight, bias, None))
    assert torch.count_nonzero(out[:, 5:]) == 0
    assert torch.count_nonzero(grad_y[:, 5:]) == 0


def test_channels_beyond_the_sum_are_not_read(device):
    sample = replace(SAMPLES["more channels than read"], device=device)
    y, probs, weight, bias, _ = sample.tensors()
    y[:, 5:] = float("nan")
    assert sample.operator(y, probs, weight, bias, None).isfinite().all()


@pytest.mark.parametrize("name", ["table", "single"])
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_changes_nothing_and_gives_zero_gradients(name, training, device):
    sample = replace(SAMPLES[name], training=training, shape=(0, 4, 4), device=device)
    arguments = sample.arguments()
    out = OPERATOR(*arguments)[0]
    y, weight = arguments[0], arguments[3]
    grad_y, grad_weight = torch.autograd.grad(out.sum(), [y, weight])
    assert out.shape == (0, max(sample.sampled), 4, 4)
    assert grad_y.shape == y.shape
    assert torch.count_nonzero(grad_weight) == 0
    assert torch.equal(torch.stack(arguments[5:7]), torch.stack(sample.statistics(torch.float32)))


@pytest.mark.parametrize("name", ["two fragments", "single"])
def test_nan_in_gives_nan_out(name, device):
    sample = replace(SAMPLES[name], device=device)
    y, probs, weight, bias, _ = sample.tensors()
    y[0, 0, 0, 0] = float("nan")
    assert sample.operator(y, probs, weight, bias, None)[:, 0].isnan().all()


@pytest.mark.parametrize("name", ["two fragments", "single"])
def test_large_offset_keeps_its_precision(name, device):
    sample = replace(SAMPLES[name], relu=False, device=device)
    y, probs, weight, bias, _ = sample.tensors()
    moved = (y.double() + 1000).float()
    exact = sample.opponent(*(x.double() for x in (moved, probs, weight, bias)), None)
    torch.testing.assert_close(sample.operator(moved, probs, weight, bias, None).double(), exact, rtol=1e-4, atol=1e-4)


def test_sliced_and_permuted_input(device):
    sample = replace(SAMPLES["two fragments"], device=device)
    _, probs, weight, bias, _ = sample.tensors()
    y = torch.randn(3, 12, 5, 4, device=device).mT[:, 1:7]
    torch.testing.assert_close(
        sample.operator(y, probs, weight, bias, None), sample.opponent(y, probs, weight, bias, None)
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["two fragments", "padded", "wide residual", "single padded"])
def test_result_has_the_layout_of_y(name, layout, device):
    sample = replace(SAMPLES[name], layout=layout, device=device)
    tensors = sample.tensors()
    tensors[0].requires_grad_()
    out = sample.operator(*tensors)
    (grad_y,) = torch.autograd.grad(out.sum(), tensors[0])
    assert op_checks.same_layout(out, tensors[0])
    assert op_checks.same_layout(grad_y, tensors[0])


def test_unneeded_gradients_are_not_computed(device):
    sample = replace(SAMPLES["residual into padding"], device=device)
    y, widths, probs, weight, bias, *_ = arguments = [
        x.detach() if isinstance(x, Tensor) else x for x in sample.arguments()
    ]
    out, mean, rstd = OPERATOR(*arguments)
    only_probs = [False, True, False, False, False]
    grads = BACKWARD(
        torch.ones_like(out), y, out, widths, probs, weight, bias, mean, rstd, None, 8, 7, True, only_probs
    )
    assert [grad.numel() for grad in grads] == [0, 2, 0, 0, 0]


def test_no_gradient_is_recorded_where_none_is_needed(device):
    sample = replace(SAMPLES["table"], device=device)
    assert not sample.operator(*sample.tensors()).requires_grad


def test_autocast_reaches_not_into_the_operator(device):
    sample = replace(SAMPLES["table"], device=device)
    tensors = sample.tensors()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = sample.operator(*tensors)
    assert torch.equal(out, sample.operator(*tensors))


def test_second_derivative_is_refused_in_words(device):
    sample = replace(SAMPLES["table"], device=device)
    y, *rest = sample.tensors()
    y.requires_grad_()
    (grad_y,) = torch.autograd.grad(sample.operator(y, *rest).square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_y.sum().backward()


def test_autograd_notices_the_update_of_running_statistics(device):
    sample = replace(SAMPLES["table"], device=device)
    arguments = sample.arguments()
    running_var = arguments[6]
    stale = running_var * arguments[3]
    OPERATOR(*arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.sum().backward()


@pytest.mark.parametrize("name", ["table", "single", "residual into padding"])
@pytest.mark.parametrize("training", [True, False])
def test_reference_never_waits_for_the_device(name, training):
    with FakeTensorMode(allow_non_fake_inputs=True):  # fake tensors have no values to read
        sample = replace(SAMPLES[name], training=training)
        arguments = [x.detach() if isinstance(x, Tensor) else x for x in sample.arguments()]
        y, widths, probs, weight, bias, _, _, _, index, out_channels, *_ = arguments
        out, mean, rstd = fragment_aggregate_reference(*arguments)
        saved = [out, widths, probs, weight, bias, mean, rstd, index, out_channels, 1, training, [True] * 5]
        grads = fragment_aggregate_backward_reference(torch.ones_like(out), y, *saved)
    assert out.shape[1] == max(out_channels, sample.residual_channels or 0)
    assert grads[0].shape == y.shape
