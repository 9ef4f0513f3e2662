"""The cost side of TAS: expected and discrete MACs, the loss that steers them, and the temperature schedule.

Every layer is one row of a `CostTable`: MACs = coefficient x channels in x channels out, where channels are looked up
in one vector (image channels, the L widths, the classes). Expected cost multiplies expected widths, an independence
approximation of the paper's E_cost; discrete cost F_cost multiplies chosen ones. Sources: equations (7) and (8), and
the released code where they differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas_fast.errors import UsageError
from tas_fast.methods.tas.search_space import SearchSpace


class Row(NamedTuple):
    """One layer; `CostTable` explains the columns."""

    source: int
    target: int
    coefficient: int
    stage: int = -1
    candidate: int = 0
    previous_stage: int = -1
    mismatch: bool = False


class CostTable(nn.Module):
    """MACs of a search space as tensors on one device; all methods are differentiable or free of host synchronisation.

    The classifier's bias is not counted, as in the released estimators.
    """

    source: Tensor  # of each row: position of its channels in
    target: Tensor  # and of its channels out
    coefficient: Tensor
    stage: Tensor  # -1: the layer is always there
    candidate: Tensor  # smallest depth candidate that contains the layer
    previous_stage: Tensor  # -1: its input is always `source`
    mismatch: Tensor  # the layer is there only when its two widths differ
    ends: Tensor  # [S, D] position of the channels that leave a stage of the d-th candidate depth
    widths: Tensor  # [L, n]
    rows: Tensor  # 0 ... L - 1
    stages: Tensor  # 0 ... S - 1

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        tables = {
            name: torch.tensor(column)
            for name, column in zip(Row._fields, zip(*_rows(space), strict=True), strict=True)
        }
        tables |= {"ends": torch.tensor(_stage_ends(space)), "widths": torch.tensor(space.widths)}
        # Row numbers live on the device: made there for each call they would be copied from the host.
        tables |= {"rows": torch.arange(len(space.widths)), "stages": torch.arange(len(space.depths))}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def expected(self, width_probs: Tensor | None, depth_probs: Tensor | None) -> Tensor:
        """Return the expected MACs as a scalar.

        Args:
            width_probs: [L, n] probabilities of the width candidates; None where widths are not searched.
            depth_probs: [S, D] probabilities of the depth candidates; None where depths are not searched.
        """
        widths = self.widths[:, -1].float() if width_probs is None else (width_probs * self.widths).sum(1)
        channels = self._channels(widths)
        cost = self.coefficient * channels[self.source] * channels[self.target] * ~self.mismatch
        if depth_probs is not None:
            # A block is kept with the probability of all candidates that contain it.
            kept = depth_probs.flip(1).cumsum(1).flip(1)
            cost = cost * torch.where(self.stage < 0, 1.0, kept[self.stage, self.candidate])
        return cost.sum()

    def discrete(self, width_index: Tensor | None, depth_index: Tensor | None, *, original: bool = False) -> Tensor:
        """Return the MACs of an architecture as a float64 scalar, or of several at once as [...].

        Args:
            width_index: [..., L] chosen width candidates; None: full widths.
            depth_index: [..., S] chosen depth candidates; None: all blocks.
            original: reproduce the released estimator, which feeds a stage from the last block of the previous stage
                even when that block was pruned.
        """
        widths = self.widths[:, -1] if width_index is None else self.widths[self.rows, width_index]
        channels = self._channels(widths.double())
        source = self.source
        if depth_index is not None and not original:
            last = self.ends[self.stages, depth_index]
            source = torch.where(self.previous_stage < 0, source, last[..., self.previous_stage])
        channels_in, channels_out = (
            channels.gather(-1, source.expand(*channels.shape[:-1], -1)),
            channels[..., self.target],
        )
        cost = self.coefficient.double() * channels_in * channels_out
        cost = torch.where(self.mismatch & (channels_in == channels_out), 0.0, cost)
        if depth_index is not None:
            cost = torch.where((self.stage < 0) | (depth_index[..., self.stage] >= self.candidate), cost, 0.0)
        return cost.sum(-1)

    def _channels(self, widths: Tensor) -> Tensor:
        return F.pad(F.pad(widths, (1, 0), value=self.space.in_channels), (0, 1), value=self.space.num_classes)


def _rows(space: SearchSpace) -> list[Row]:
    """One row per layer. Channels: 0 is the image, 1 ... L the widths, L + 1 the classes."""
    plan, length = space.unpruned.plan(), len(space.widths)
    rows = [Row(0, 1, plan.stem.macs_per_channel_pair)]
    channel = 1
    for block in plan.blocks:
        candidate = next(i for i, depth in enumerate(space.depths[block.stage]) if depth > block.index)
        place = Row(0, 0, 0, block.stage, candidate)
        entry = place._replace(source=channel, previous_stage=block.stage - 1 if block.index == 0 else -1)
        for number, conv in enumerate(block.convs):
            row = entry if number == 0 else place._replace(source=channel)
            rows.append(row._replace(target=channel + 1, coefficient=conv.macs_per_channel_pair))
            channel += 1
        # An identity shortcut becomes a projection in the derived network when its two widths differ.
        pixels = block.convs[-1].size[0] * block.convs[-1].size[1]
        rows.append(entry._replace(target=channel, coefficient=pixels, mismatch=block.shortcut is None))
    rows.append(Row(length, length + 1, 1, previous_stage=len(space.depths) - 1))
    return rows


def _stage_ends(space: SearchSpace) -> list[list[int]]:
    """[S, D] channel that leaves stage s when it keeps its d-th candidate depth."""
    convs, start, ends = space.skeleton.convs_per_block, 1, []
    for count, depths in zip(space.skeleton.blocks, space.depths, strict=True):
        ends.append([start + depth * convs for depth in depths])
        start += count * convs
    return ends


@dataclass(frozen=True)
class Target:
    """R of equation (8) and the band in which the cost term rests, all in MACs."""

    macs: float
    lower: float
    upper: float

    @classmethod
    def of(cls, macs: float, unpruned: float, *, form: str, tolerance: float) -> Target:
        """Return the band of a form: "paper" (1 - t) R ... (1 + t) R, "released" R - t x unpruned ... R."""
        if form == "paper":
            return cls(macs, (1 - tolerance) * macs, (1 + tolerance) * macs)
        return cls(macs, macs - tolerance * unpruned, macs)


def macs_loss(expected: Tensor, discrete: Tensor, target: Target) -> Tensor:
    """Return the cost term of the architecture's loss: +log E above the target's band, -log E below it, 0 in it.

    Args:
        expected: E_cost in MACs, scalar, differentiable; the logarithm is of 1e6 MACs.
        discrete: F_cost of the argmax architecture, scalar; decides the sign.
        target: the band.
    """
    sign = (discrete > target.upper).to(expected.dtype) - (discrete < target.lower).to(expected.dtype)
    return sign * torch.log(expected / 1e6)


def temperature(epoch: int, epochs: int, *, start: float, end: float, schedule: str) -> float:
    """Return the Gumbel-softmax temperature of `epoch` (0 ... epochs - 1).

    "linear" (paper, 10 to 0.1) reaches `end` in the last epoch; "cosine" (released code, 5 to 0.1) comes close to it.
    """
    if schedule == "linear":
        return start + (end - start) * epoch / max(epochs - 1, 1)
    if schedule == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    raise UsageError(f"temperature schedule must be linear or cosine, got {schedule!r}")
