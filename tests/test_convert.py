"""`convert`: the same numbers, tensors and names with fused norms; what cannot be fused stays and is named."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn

from tas_fast.models import build
from tas_fast.nn import FusedBatchNorm2d, convert


def assert_same(model, converted, images):
    """Outputs, input gradients, parameter gradients and running statistics in training; outputs in evaluation."""
    results = []
    for network in (model, converted):
        network.train()
        x = images.clone().requires_grad_()
        network.zero_grad()
        out = network(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        grads = [p.grad.clone() for p in network.parameters()]
        buffers = [b.clone() for b in network.buffers()]
        results.append([out, x.grad, *grads, *buffers, network.eval()(images)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "fused", "kept"), [("resnet18", 17, 3), ("resnet50", 49, 4), ("resnext50_32x4d", 49, 4)]
)
def test_torchvision_resnets(name, fused, kept):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=7).double()
    twin = copy.deepcopy(model)
    converted = convert(twin)
    assert (len(converted.conversion.fused), len(converted.conversion.kept)) == (fused, kept)
    assert_same(model, converted, torch.randn(2, 3, 64, 64, dtype=torch.float64))


@pytest.mark.parametrize("name", ["resnet20", "resnet164"])
def test_networks_of_this_library(name):
    torch.manual_seed(0)
    model = build(name, 5).double()
    assert_same(model, convert(copy.deepcopy(model)), torch.randn(3, 3, 16, 16, dtype=torch.float64))


def test_parameters_and_names_are_the_same():
    model = torchvision.models.resnet18()
    converted = convert(model)
    assert list(converted.state_dict()) == list(model.state_dict())
    assert [n for n, _ in converted.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert all(a is b for a, b in zip(model.parameters(), converted.parameters(), strict=True))
    assert isinstance(converted.get_submodule("layer1.0.bn2"), FusedBatchNorm2d)
    assert type(model.layer1[0].bn2) is nn.BatchNorm2d


def test_training_mode_is_kept():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    converted = convert(model)
    assert not converted.training
    assert not converted.get_submodule("1").training
    assert converted.train().get_submodule("1").training


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.norm(x).relu()).relu()


class Shared(nn.Module):
    """The norm's result is needed beside the ReLU."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.norm(x)
        return torch.relu(y) + y


class Sum(nn.Module):
    """Additions in both orders, and of a number."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.BatchNorm2d(2) for _ in range(3))

    def forward(self, x):
        y = torch.relu(x + self.a(x))
        y = self.b(y).add_(x).relu_()
        return torch.relu(self.c(y) + 1)


@pytest.mark.parametrize(
    ("model", "fused", "reason"),
    [
        (Twice, set(), "it is called 2 times"),
        (Shared, set(), "no ReLU takes its result alone"),
        (Sum, {"a", "b"}, "no ReLU takes its result alone"),
        (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Sigmoid()), set(), "no ReLU"),
        (lambda: nn.Sequential(nn.BatchNorm2d(2).bfloat16(), nn.ReLU()), set(), r"parameters are torch\.bfloat16"),
        (lambda: nn.Sequential(nn.SyncBatchNorm(2), nn.ReLU()), set(), None),
    ],
)
def test_what_cannot_be_fused_stays_and_says_why(model, fused, reason):
    model = model()
    converted = convert(model)
    assert set(converted.conversion.fused) == fused
    assert reason is None or any(re.search(reason, text) for text in converted.conversion.kept.values())


def test_sums_compute_the_same():
    torch.manual_seed(1)
    model = Sum().double()
    assert_same(model, convert(copy.deepcopy(model)), torch.randn(3, 2, 4, 4, dtype=torch.float64))


def test_without_running_statistics_and_affine_parameters():
    model = nn.Sequential(nn.BatchNorm2d(2, affine=False, track_running_stats=False), nn.ReLU()).double()
    model.append(nn.Conv2d(2, 1, 1).double())
    assert_same(model, convert(copy.deepcopy(model)), torch.randn(3, 2, 4, 4, dtype=torch.float64))


def test_networks_that_cannot_be_traced_are_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="model Branching cannot be traced"):
        convert(Branching())
