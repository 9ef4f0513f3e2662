"""Residual networks of any widths and depths, of the CIFAR family (3x3 stem) and the ImageNet family (7x7, pooling).

Modules carry torchvision's names (`conv1`, `bn1`, `layer1.0.conv2`, `fc`); a projection is timm's `downsample` =
pooling, convolution, norm. Shortcuts and initialisation follow the released TAS code: 2x2 average pooling before a
projection with stride 2, Kaiming normal (fan out) convolutions, N(0, 0.01) classifier; ImageNet networks start each
residual branch at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tas_fast.architecture import Architecture, Block, Conv


class ResidualBlock(nn.Module):
    """Basic (two convolutions) or bottleneck (three) block with an identity or projection shortcut."""

    def __init__(self, plan: Block) -> None:
        super().__init__()
        self.num_convs = len(plan.convs)
        for number, conv in enumerate(plan.convs, start=1):
            self.add_module(f"conv{number}", _conv(conv))
            self.add_module(f"bn{number}", nn.BatchNorm2d(conv.out_channels))
        self.downsample = _projection(plan.shortcut) if plan.shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.num_convs):
            x = torch.relu(self._unit(number, x))
        return torch.relu(self._unit(self.num_convs, x) + shortcut)

    def _unit(self, number: int, x: Tensor) -> Tensor:
        return getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))


class ResNet(nn.Module):
    """The network that `architecture` describes; input [N, in_channels, H, W], output logits [N, num_classes].

    Example:
        >>> model = ResNet(Architecture("resnet20", num_classes=10, depths=(1, 2, 3)))
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        plan = architecture.plan()
        self.architecture = architecture
        self.conv1 = _conv(plan.stem)
        self.bn1 = nn.BatchNorm2d(plan.stem.out_channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if plan.family == "imagenet" else nn.Identity()
        self.stages: list[str] = []
        for stage in range(len(architecture.depths)):
            blocks = [ResidualBlock(block) for block in plan.blocks if block.stage == stage]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.stages.append(f"layer{stage + 1}")
        self.fc = nn.Linear(plan.features, plan.num_classes)
        initialise(self, zero_residual=plan.family == "imagenet")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(x.mean((2, 3)))


def initialise(model: nn.Module, zero_residual: bool = False) -> None:
    """Draw fresh weights as the released TAS code; `zero_residual`: the last BatchNorm of every branch starts at 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
    if zero_residual:
        for module in model.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(getattr(module, f"bn{module.num_convs}").weight)


def _conv(conv: Conv) -> nn.Conv2d:
    return nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)


def _projection(conv: Conv) -> nn.Sequential:
    # Rounding up keeps odd sizes equal to those of the strided branch; even sizes are unaffected.
    pool = nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False) if conv.average_pool else nn.Identity()
    norm = nn.BatchNorm2d(conv.out_channels) if conv.norm else nn.Identity()
    return nn.Sequential(pool, _conv(conv), norm)
