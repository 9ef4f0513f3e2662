"""The supernet of TAS: an unpruned network whose convolutions offer several widths, whose stages several depths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_fast import ops
from tas_fast.architecture import Architecture, Block, Conv, Skeleton
from tas_fast.methods.tas.objective import CostTable
from tas_fast.methods.tas.sampling import Choice, sample
from tas_fast.methods.tas.search_space import SearchSpace
from tas_fast.nn import FragmentConv2d


class SearchableBlock(nn.Module):
    """A residual block of searchable convolutions; a projection shares the choice of the last convolution."""

    def __init__(
        self, plan: Block, widths: tuple[tuple[int, ...], ...], searched: bool, relu_after_addition: bool
    ) -> None:
        super().__init__()
        last = len(plan.convs) - 1
        self.convs = nn.ModuleList(
            _unit(conv, choices, relu=relu_after_addition if i == last else True)
            for i, (conv, choices) in enumerate(zip(plan.convs, widths, strict=True))
        )
        self.shortcut: nn.Module | None = None
        if plan.shortcut is not None:
            # Width searches normalise every projection, depth searches only those of the unpruned network.
            if searched or plan.shortcut.norm:
                self.shortcut = _unit(plan.shortcut, widths[-1], relu=False)
            else:
                self.shortcut = PlainProjection(plan.shortcut)

    def forward(self, x: Tensor, index: Tensor, prob: Tensor, channels: list[int]) -> Tensor:
        """Return relu(convolutions(x) + shortcut(x)).

        Args:
            x: [N, c, H, W], any c up to the block's full input width.
            index: [number of convolutions, K] sampled candidates.
            prob: [number of convolutions, K] their weights.
            channels: largest sampled width of each convolution.
        """
        residual = x
        if self.shortcut is not None:
            residual = self.shortcut(x, index[-1], prob[-1], out_channels=channels[-1])
        last = len(self.convs) - 1
        for i, conv in enumerate(self.convs):
            x = conv(x, index[i], prob[i], residual=residual if i == last else None, out_channels=channels[i])
        return x


class PlainProjection(nn.Module):
    """2x2 average pooling and a 1x1 convolution without norm, in the calling form of a searchable unit."""

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.average_pool = conv.average_pool
        self.conv_weight = nn.Parameter(torch.empty(conv.out_channels, conv.in_channels, 1, 1))
        nn.init.kaiming_normal_(self.conv_weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, index: Tensor, prob: Tensor, *, out_channels: int) -> Tensor:
        if self.average_pool:
            x = F.avg_pool2d(x, 2, stride=2, ceil_mode=True, count_include_pad=False)
        return ops.active_conv2d(x, self.conv_weight, out_channels)


class Supernet(nn.Module):
    """Weights of the unpruned network plus logits over widths and depths.

    Args:
        model: name of a residual network (`tas_fast.architecture.SKELETONS`).
        num_classes: outputs of the classifier.
        search: "shape" (widths and depths), "width" or "depth".
        in_channels, image_size: format of the images; the size (None: 32 or 224; one number or height and width) only
            enters the count of MACs.
        relu_after_addition: False leaves out the ReLU after the residual addition, as the code behind the paper's
            results did.

    Attributes:
        width_logits: [L, 8], one row per convolution on the main path in execution order; None in a depth search.
        depth_logits: [S, D], one row per stage; None in a width search.

    Raises:
        UsageError: unknown model or search.

    Example:
        >>> supernet = Supernet("resnet20", num_classes=10)
        >>> supernet(torch.zeros(2, 3, 32, 32), supernet.sample(tau=5.0)).shape
        torch.Size([2, 10])
    """

    stem: FragmentConv2d
    cost: CostTable
    width_logits: nn.Parameter | None
    depth_logits: nn.Parameter | None

    def __init__(
        self,
        model: str,
        num_classes: int,
        search: str = "shape",
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] | None = None,
        relu_after_addition: bool = True,
    ) -> None:
        super().__init__()
        self.space = space = SearchSpace(model, num_classes, search, in_channels, image_size)
        plan = space.unpruned.plan()
        self.stem = _unit(plan.stem, space.widths[0], relu=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if plan.family == "imagenet" else nn.Identity()
        convs, first = space.skeleton.convs_per_block, 1
        self.blocks = nn.ModuleList()
        for block in plan.blocks:
            widths = space.widths[first : first + convs]
            self.blocks.append(SearchableBlock(block, widths, search != "depth", relu_after_addition))
            first += convs
        self.classifier = nn.Linear(plan.features, num_classes)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)
        self.cost = CostTable(space)
        self.width_logits = _logits(len(space.widths), len(space.widths[0])) if search != "depth" else None
        self.depth_logits = _logits(len(space.depths), len(space.depths[0])) if search != "width" else None

    @property
    def skeleton(self) -> Skeleton:
        return self.space.skeleton

    def searchable_blocks(self) -> list[SearchableBlock]:
        """Return the blocks in execution order."""
        return [block for block in self.blocks if isinstance(block, SearchableBlock)]

    def block_names(self) -> list[str]:
        """Return the module names of the blocks in execution order."""
        return [f"blocks.{i}" for i in range(len(self.blocks))]

    def sample(
        self,
        tau: float,
        k: int = 2,
        *,
        generator: torch.Generator | None = None,
        width_index: Tensor | None = None,
        gumbel: bool = True,
    ) -> Choice:
        """Draw K widths of every convolution without replacement, and a mixture of every stage's depths (eq. 3 to 5).

        Args:
            tau: temperature; 0 or below: plain softmax of the logits, no noise.
            k: widths per convolution, 1 ... number of candidates.
            generator: source of randomness on the logits' device.
            width_index: [L, K] candidates to take instead of drawing them; their weights still follow from the logits.
            gumbel: False leaves out the noise.

        Raises:
            UsageError: k outside its range.
        """
        return sample(
            self.width_logits, self.depth_logits, tau, k, generator=generator, width_index=width_index, gumbel=gumbel
        )

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """Return logits [N, num_classes] of the sampled sub-networks; x is [N, in_channels, H, W]."""
        index, prob, channels = self._units(x, choice)
        x = self.maxpool(self.stem(x, index[0], prob[0], out_channels=channels[0]))
        unit, position = 1, 0
        for stage, depths in enumerate(self.space.depths):
            maps = []
            for depth in range(1, self.skeleton.blocks[stage] + 1):
                convs = slice(unit, unit + self.skeleton.convs_per_block)
                x = self.blocks[position](x, index[convs], prob[convs], channels[convs])
                unit, position = convs.stop, position + 1
                if depth in depths:
                    maps.append(x)
            if choice.depth_prob is not None:
                x = ops.weighted_interpolation_sum(maps, choice.depth_prob[stage])
        features = x.mean((2, 3))
        return F.linear(features, self.classifier.weight[:, : features.size(1)], self.classifier.bias)

    def _units(self, x: Tensor, choice: Choice) -> tuple[Tensor, Tensor, list[int]]:
        """Indices [L, K], weights [L, K] and the largest width of every convolution, read from the device once."""
        if choice.width_index is None or choice.width_prob is None:
            length = len(self.space.widths)
            index = torch.zeros(length, 1, dtype=torch.long, device=x.device)
            return index, torch.ones(length, 1, device=x.device), [row[-1] for row in self.space.widths]
        largest = choice.width_index.amax(1).tolist()
        return (
            choice.width_index,
            choice.width_prob,
            [row[i] for row, i in zip(self.space.widths, largest, strict=True)],
        )

    def width_probs(self) -> Tensor | None:
        """Return the probabilities [L, 8] of the widths (equation 2), None in a depth search."""
        return None if self.width_logits is None else self.width_logits.softmax(1)

    def depth_probs(self) -> Tensor | None:
        """Return the probabilities [S, D] of the depths, None in a width search."""
        return None if self.depth_logits is None else self.depth_logits.softmax(1)

    def expected_macs(self) -> Tensor:
        """Return E_cost, the expected MACs, as a differentiable scalar (the classifier's bias is not counted)."""
        return self.cost.expected(self.width_probs(), self.depth_probs())

    def argmax_macs(self, *, original: bool = False) -> Tensor:
        """Return F_cost, the MACs of the argmax architecture, as a float64 scalar; `original`: with the released
        code's error.
        """
        return self.cost.discrete(*self._argmax(), original=original)

    def architecture(self) -> Architecture:
        """Return the architecture of the most probable widths and depths; of equal ones the smaller."""
        width_index, depth_index = self._argmax()
        widths = _pick(self.space.widths, width_index)
        return self.space.derive(widths, _pick(self.space.depths, depth_index))

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Return the logits that exist."""
        return [logits for logits in (self.width_logits, self.depth_logits) if logits is not None]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Return everything that is no logit."""
        logits = {id(parameter) for parameter in self.architecture_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in logits]

    def _argmax(self) -> tuple[Tensor | None, Tensor | None]:
        width, depth = self.width_logits, self.depth_logits
        return None if width is None else width.argmax(1), None if depth is None else depth.argmax(1)


def _unit(conv: Conv, choices: tuple[int, ...], *, relu: bool) -> FragmentConv2d:
    return FragmentConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        choices=choices,
        relu=relu,
        average_pool=conv.average_pool,
    )


def _logits(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(1e-2 * torch.randn(rows, columns))


def _pick(candidates: tuple[tuple[int, ...], ...], index: Tensor | None) -> tuple[int, ...]:
    if index is None:
        return tuple(row[-1] for row in candidates)
    return tuple(row[i] for row, i in zip(candidates, index.tolist(), strict=True))
