"""Modules on top of the fragment operator: FragmentConv2d, FragmentBatchNorm2d, FusedBatchNorm2d."""

import copy

import original_formulation as original
import pytest
import torch
import torch.nn.functional as F
from golden import load_golden
from torch import nn

from tas_fast.nn import FragmentBatchNorm2d, FragmentConv2d, FusedBatchNorm2d

BLOCKS = ["block_1x1_avg_shortcut", "block_3x3_full_in", "block_3x3_narrow_in", "block_3x3_stride2"]
CHOICES = (4, 6, 8)


def unit(**options):
    return FragmentConv2d(5, 8, 3, padding=1, choices=CHOICES, **options)


def sampled(*rows):
    return torch.tensor(rows), torch.rand(len(rows))


def recorded_unit(recorded):
    """Return the module with the recorded weights and running statistics."""
    choices = recorded["choices"].tolist()
    filters, depth = recorded["conv.weight"].shape[:2]
    kernel, stride, padding = (int(recorded[name]) for name in ("kernel", "stride", "padding"))
    relu, average_pool = bool(recorded["relu"]), bool(recorded["avg_pool_first"])
    module = FragmentConv2d(
        depth, filters, kernel, stride, padding, choices=choices, relu=relu, average_pool=average_pool
    )
    with torch.no_grad():
        module.conv_weight.copy_(recorded["conv.weight"])
        for row, width in enumerate(choices):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(module, name)[row, :width] = recorded[f"bn{row}.{name}"]
    return module


@pytest.mark.parametrize("name", BLOCKS)
def test_golden_units(name):
    recorded = load_golden(name)
    module = recorded_unit(recorded)
    x, prob, index = recorded["x"].requires_grad_(), recorded["prob"].requires_grad_(), recorded["index"]
    out = module(x, index, prob)
    out.backward(recorded["grad_y"])

    def same(ours, key):
        expected = recorded[key]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item(), msg=key)

    same(out, "y")
    same(x.grad, "grad_x")
    same(prob.grad, "grad_prob")
    same(module.conv_weight.grad, "grad_conv.weight")
    for row in index.tolist():
        width = module.choices[row]
        same(module.weight.grad[row, :width], f"bn{row}.grad_weight")
        same(module.bias.grad[row, :width], f"bn{row}.grad_bias")
        same(module.running_mean[row, :width], f"bn{row}.running_mean_after")
        same(module.running_var[row, :width], f"bn{row}.running_var_after")
    same(module.eval()(x, index, prob), "y_eval")


@pytest.mark.parametrize("name", BLOCKS)
def test_golden_units_leave_other_widths_alone(name):
    recorded = load_golden(name)
    module = recorded_unit(recorded)
    before = copy.deepcopy(module)
    module(recorded["x"], recorded["index"], recorded["prob"]).sum().backward()
    others = [row for row in range(len(module.choices)) if row not in recorded["index"].tolist()]
    assert torch.equal(module.running_mean[others], before.running_mean[others])
    assert torch.equal(module.running_var[others], before.running_var[others])
    assert torch.count_nonzero(module.weight.grad[others]) == 0


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("average_pool", [True, False])
def test_convolution_is_pool_convolution_and_mixed_norms(relu, average_pool):
    module = unit(relu=relu, average_pool=average_pool)
    (index, prob), x = sampled(2, 0), torch.randn(3, 3, 6, 6)
    pooled = F.avg_pool2d(x, 2) if average_pool else x
    y = F.conv2d(pooled, module.conv_weight[:, :3], padding=1)
    expected = original.fragment_aggregate(
        y, CHOICES, prob, module.weight, module.bias, None, None, relu=relu, index=index.tolist()
    )
    torch.testing.assert_close(module(x, index, prob), expected)


@pytest.mark.parametrize("residual_channels", [3, 6, 8])
def test_residual_of_any_width_is_added_to_the_first_channels(residual_channels):
    module, (index, prob) = unit(relu=True), sampled(0, 1)
    x, residual = torch.randn(2, 5, 4, 4), torch.randn(2, residual_channels, 4, 4)
    plain = unit(relu=False)
    plain.load_state_dict(module.state_dict())
    expected = original.add_first_channels(plain(x, index, prob), residual).relu()
    torch.testing.assert_close(module(x, index, prob, residual), expected)


@pytest.mark.parametrize("training", [True, False])
def test_padded_form_appends_zero_channels(training):
    module, (index, prob), x = unit(relu=True).train(training), sampled(1, 0), torch.randn(2, 5, 4, 4)
    narrow = module(x, index, prob)
    padded = module(x, index, prob, out_channels=8)
    assert narrow.shape[1] == 6
    assert torch.count_nonzero(padded[:, 6:]) == 0
    torch.testing.assert_close(padded[:, :6], narrow)


def test_zero_input_channels_change_nothing():
    module, (index, prob), x = unit(), sampled(1, 0), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(module(original.pad_channels(x, 5), index, prob), module(x, index, prob))


def test_norm_alone_is_the_second_half_of_the_convolution():
    module, (index, prob), x = unit(relu=True), sampled(2, 1), torch.randn(2, 5, 4, 4)
    norm = FragmentBatchNorm2d(8, choices=CHOICES, relu=True)
    y = F.conv2d(x, module.conv_weight, padding=1)
    torch.testing.assert_close(norm(y, index, prob), module(x, index, prob))


def test_default_is_one_fragment_of_full_width():
    module, x = FragmentConv2d(5, 8, 1), torch.randn(2, 5, 4, 4)
    expected = nn.BatchNorm2d(8)(F.conv2d(x, module.conv_weight))
    torch.testing.assert_close(module(x, torch.tensor([0]), torch.ones(1)), expected)


def test_state_dict_holds_one_row_per_width():
    shapes = {name: tuple(x.shape) for name, x in unit().state_dict().items()}
    rows = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (3, 8))
    assert shapes == {**rows, "conv_weight": (8, 5, 3, 3)}


def test_initialisation_is_he_fan_out():
    module = FragmentConv2d(64, 64, 3)
    assert module.conv_weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert torch.equal(module.weight, torch.ones(1, 64))
    assert torch.equal(module.running_var, torch.ones(1, 64))


@pytest.mark.parametrize("choices", [(), (0, 8), (4, 9), (4, 6)])
def test_rejects_choices_that_do_not_fit(choices):
    with pytest.raises(ValueError, match=r"FragmentConv2d: choices must be widths in 1\.\.8 that reach 8, got"):
        FragmentConv2d(5, 8, 3, choices=choices)


def test_trains_under_autocast():
    module, (index, prob) = unit(relu=True), sampled(2, 0)
    residual = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(torch.randn(2, 5, 4, 4), index, prob, residual)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


def test_module_compiles_as_one_graph():
    module, (index, prob), x = unit(relu=True), sampled(2, 0), torch.randn(2, 5, 4, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, index, prob, out_channels=8), module(x, index, prob))


def test_exports_in_evaluation():
    module, (index, prob), x = unit(relu=True).eval(), sampled(2, 0), torch.randn(2, 5, 4, 4)
    exported = torch.export.export(module, (x, index, prob), {"out_channels": 8})
    torch.testing.assert_close(exported.module()(x, index, prob, out_channels=8), module(x, index, prob))


@pytest.mark.parametrize("momentum", [0.1, 0.4, None])
@pytest.mark.parametrize("track_running_stats", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_fused_norm_is_batch_norm_over_a_training_and_an_evaluation(affine, track_running_stats, momentum):
    options = {"affine": affine, "track_running_stats": track_running_stats, "momentum": momentum}
    ours, theirs = FusedBatchNorm2d(6, **options), nn.BatchNorm2d(6, **options)
    for _ in range(3):
        y = torch.randn(4, 6, 3, 3)
        torch.testing.assert_close(ours(y), theirs(y))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(y), theirs.eval()(y))


@pytest.mark.parametrize("training", [True, False])
def test_fused_norm_adds_and_rectifies(training):
    norm = FusedBatchNorm2d(6, relu=True).train(training)
    plain = nn.BatchNorm2d(6).train(training)
    y, residual = torch.randn(2, 4, 6, 3, 3)
    torch.testing.assert_close(norm(y, residual), (plain(y) + residual).relu())


def test_fused_norm_loads_batch_norm_checkpoints():
    source = nn.BatchNorm2d(6)
    source(torch.randn(4, 6, 3, 3))
    norm = FusedBatchNorm2d(6)
    norm.load_state_dict(source.state_dict())
    assert norm.num_batches_tracked.item() == 1
    y = torch.randn(4, 6, 3, 3)
    torch.testing.assert_close(norm.eval()(y), source.eval()(y))
