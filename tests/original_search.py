"""The search step of the original TAS code, written anew in its formulation: tests compare with it, benchmarks race it.

Zero padding to full width, all channels computed, one BatchNorm module per width, interpolation by adaptive pooling,
sampling on the host, expected cost in every forward pass, the argmax network's cost read row by row, full backward in
both steps. Residual networks of the CIFAR and ImageNet families, search over widths and depths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from original_formulation import add_first_channels, channel_interpolation
from torch import Tensor, nn

from tas_fast.architecture import Block, Conv
from tas_fast.methods.tas import SearchSpace, Supernet


class OriginalUnit(nn.Module):
    """Convolution of full size, a BatchNorm for every width, mixture of two, optional ReLU."""

    def __init__(self, conv: Conv, choices: tuple[int, ...], relu: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2) if conv.average_pool else None
        self.conv = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in choices)
        self.relu = nn.ReLU(inplace=True) if relu else None
        self.choices = choices
        self.register_buffer("widths", torch.tensor(choices, dtype=torch.float32))
        self.macs_per_channel_pair = conv.macs_per_channel_pair / 1e6

    def forward(
        self, x: Tensor, width_in: Tensor, probs: Tensor, index: list[int], weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mixture, its expected width and the expected cost in 1e6 MACs."""
        width_out = torch.sum(self.widths * probs)
        cost = self.macs_per_channel_pair * width_in * width_out
        if self.pool is not None:
            x = self.pool(x)
        missing = self.conv.in_channels - x.size(1)
        if missing:
            x = torch.cat((x, x.new_zeros(x.size(0), missing, x.size(2), x.size(3))), dim=1)
        y = self.conv(x)
        channels = max(self.choices[i] for i in index)
        parts = [self.norms[i](y[:, : self.choices[i]]) for i in index]
        out = sum(channel_interpolation(part, channels) * weight for part, weight in zip(parts, weights, strict=True))
        return (out if self.relu is None else self.relu(out)), width_out, cost


class OriginalBlock(nn.Module):
    def __init__(self, plan: Block, widths: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        last = len(plan.convs) - 1
        self.convs = nn.ModuleList(
            OriginalUnit(conv, row, i < last) for i, (conv, row) in enumerate(zip(plan.convs, widths, strict=True))
        )
        self.shortcut = OriginalUnit(plan.shortcut, widths[-1], relu=False) if plan.shortcut else None

    def forward(
        self, x: Tensor, width: Tensor, probs: Tensor, index: list[list[int]], weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, width_in, costs = x, width, []
        for i, conv in enumerate(self.convs):
            out, width, cost = conv(out, width, probs[i], index[i], weights[i])
            costs.append(cost)
        residual = x
        if self.shortcut is not None:
            residual, _, cost = self.shortcut(x, width_in, probs[-1], index[-1], weights[-1])
            costs.append(cost)
        return F.relu(add_first_channels(residual, out), inplace=True), width, sum(costs)


class OriginalSupernet(nn.Module):
    """The same network, candidates and logits as `Supernet(model, num_classes)`."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        plan = space.unpruned.plan()
        self.space, convs = space, space.skeleton.convs_per_block
        self.stem = OriginalUnit(plan.stem, space.widths[0], relu=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if plan.family == "imagenet" else nn.Identity()
        self.blocks = nn.ModuleList(
            OriginalBlock(block, space.widths[1 + i * convs : 1 + (i + 1) * convs])
            for i, block in enumerate(plan.blocks)
        )
        self.classifier = nn.Linear(plan.features, space.num_classes)
        self.width_attentions = nn.Parameter(1e-2 * torch.randn(len(space.widths), len(space.widths[0])))
        self.depth_attentions = nn.Parameter(1e-2 * torch.randn(len(space.depths), len(space.depths[0])))
        self.tau = 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the expected cost in 1e6 MACs."""
        indices, weights = self.select(self.width_attentions)
        depth_weights = self.select(self.depth_attentions, only_weights=True)
        probs, keep = self.width_attentions.softmax(1), self.depth_attentions.softmax(1).flip(1).cumsum(1).flip(1)
        chosen = indices.cpu().tolist()
        width = torch.tensor(float(self.space.in_channels), device=x.device)
        x, width, cost = self.stem(x, width, probs[0], chosen[0], weights[0])
        x, costs, row, position = self.maxpool(x), [cost], 1, 0
        for stage, depths in enumerate(self.space.depths):
            maps = []
            for depth in range(1, self.space.skeleton.blocks[stage] + 1):
                stop = row + self.space.skeleton.convs_per_block
                x, width, cost = self.blocks[position](x, width, probs[row:stop], chosen[row:stop], weights[row:stop])
                candidate = next(i for i, value in enumerate(depths) if value >= depth)
                costs.append(keep[stage, candidate] * cost)
                row, position = stop, position + 1
                if depth in depths:
                    maps.append(x)
            channels = max(part.size(1) for part in maps)
            x = sum(
                channel_interpolation(part, channels) * w for part, w in zip(maps, depth_weights[stage], strict=True)
            )
        features = x.mean((2, 3))
        costs.append(width * self.space.num_classes / 1e6)
        return F.linear(features, self.classifier.weight[:, : features.size(1)], self.classifier.bias), sum(costs)

    def select(self, logits: Tensor, only_weights: bool = False):
        """Two of n by noise on the device and a draw on the host, redrawn until everything is finite."""
        while True:
            gumbels = -torch.empty_like(logits).exponential_().log()
            perturbed = (logits.log_softmax(1) + gumbels) / self.tau
            probs = perturbed.softmax(1)
            if not (torch.isinf(gumbels).any() or torch.isinf(probs).any() or torch.isnan(probs).any()):
                break
        if only_weights:
            return probs
        with torch.no_grad():
            index = torch.multinomial(probs.cpu() + 1e-7, 2, False).to(logits.device)
        return index, perturbed.gather(1, index).softmax(1)

    def argmax_macs(self) -> float:
        """Cost of the most probable network in 1e6 MACs, read from the device row by row."""
        with torch.no_grad():
            widths = [row[self.width_attentions[i].argmax().item()] for i, row in enumerate(self.space.widths)]
            depths = [row[self.depth_attentions[i].argmax().item()] for i, row in enumerate(self.space.depths)]
        return self.space.derive(tuple(widths), tuple(depths)).macs() / 1e6


class OriginalSearch:
    """Both steps of the original's iteration on batches (images, classes, images, classes)."""

    def __init__(self, net: OriginalSupernet, target: float, unpruned: float, lr: float = 0.1) -> None:
        self.net, self.target, self.unpruned = net, target, unpruned
        logits = {id(net.width_attentions), id(net.depth_attentions)}
        weights = [p for p in net.parameters() if id(p) not in logits]
        self.weights = torch.optim.SGD(weights, lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.logits = torch.optim.Adam(
            [net.width_attentions, net.depth_attentions], 1e-3, betas=(0.5, 0.999), weight_decay=1e-3
        )

    def step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, float]:
        """Return the losses of the weights' and the architecture's step."""
        images, classes, held_images, held_classes = batch
        self.weights.zero_grad()
        logits, _ = self.net(images)
        loss = F.cross_entropy(logits, classes)
        loss.backward()
        self.weights.step()
        (logits.argmax(1) == classes).float().mean().item()  # logged by the original, so its wait belongs here
        self.logits.zero_grad()
        logits, expected = self.net(held_images)
        arch_loss = F.cross_entropy(logits, held_classes) + 2 * self.macs_loss(expected)
        arch_loss.backward()
        self.logits.step()
        return loss.item(), arch_loss.item()

    def macs_loss(self, expected: Tensor):
        cost, expected = self.net.argmax_macs(), expected.mean()
        if cost > self.target:
            return torch.log(expected)
        if cost < self.target - 0.05 * self.unpruned:
            return -torch.log(expected)
        return 0.0


def copy_weights(ours: Supernet, theirs: OriginalSupernet) -> None:
    """Give `theirs` the weights and logits of `ours`."""
    units = [(ours.stem, theirs.stem)]
    for our_block, their_block in zip(ours.searchable_blocks(), theirs.blocks, strict=True):
        units += zip(our_block.convs, their_block.convs, strict=True)
        if our_block.shortcut is not None:
            units.append((our_block.shortcut, their_block.shortcut))
    with torch.no_grad():
        for our, their in units:
            their.conv.weight.copy_(our.conv_weight)
            for row, norm in enumerate(their.norms):
                for name in ("weight", "bias", "running_mean", "running_var"):
                    getattr(norm, name).copy_(getattr(our, name)[row, : norm.num_features])
        theirs.width_attentions.copy_(ours.width_logits)
        theirs.depth_attentions.copy_(ours.depth_logits)
        theirs.classifier.load_state_dict(ours.classifier.state_dict())
