"""From probabilities to an architecture of wanted cost.

The argmax architecture follows the paper; its cost depends on where the search happened to stop. `within_target` moves
as few and as improbable choices as possible until the cost lies in the wanted band.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tas_fast.architecture import Architecture
from tas_fast.methods.tas.supernet import Supernet


@torch.no_grad()
def within_target(supernet: Supernet, lower: float, upper: float) -> Architecture:
    """Return the argmax architecture, changed greedily until its MACs lie in [lower, upper].

    Each move changes one width or one depth: a move that lands in the band with the least loss of log-probability,
    else the one that loses the least per MAC towards the band without leaping over it. Where no move is left the
    nearest architecture is returned.
    """
    space = supernet.space
    sizes = [*map(len, space.widths), *map(len, space.depths)]
    log_probs = _log_probs(supernet, sizes)
    index = log_probs.argmax(1)
    moves = torch.tensor(
        [(row, candidate) for row, size in enumerate(sizes) for candidate in range(size)], device=index.device
    )
    cost = _costs(supernet, index[None])[0]
    while not lower <= cost <= upper:
        trials = index.repeat(len(moves), 1)
        trials[torch.arange(len(moves)), moves[:, 0]] = moves[:, 1]
        costs = _costs(supernet, trials)
        loss = log_probs[torch.arange(len(index)), index][moves[:, 0]] - log_probs[moves[:, 0], moves[:, 1]]
        hits = (costs >= lower) & (costs <= upper)
        gain = (cost - costs) if cost > upper else (costs - cost)
        leaps = costs < lower if cost > upper else costs > upper
        score = torch.where(hits, loss, torch.where((gain > 0) & ~leaps & ~hits.any(), loss / gain, torch.inf))
        best = int(score.argmin())
        if score[best] == torch.inf:
            break
        index, cost = trials[best], costs[best]
    widths, depths = index[: len(space.widths)].tolist(), index[len(space.widths) :].tolist()
    return space.derive(
        tuple(row[i] for row, i in zip(space.widths, widths, strict=True)),
        tuple(row[i] for row, i in zip(space.depths, depths, strict=True)),
    )


def _log_probs(supernet: Supernet, sizes: list[int]) -> Tensor:
    """[L + S, largest number of candidates], -inf where a row has fewer."""
    device = supernet.cost.widths.device
    table = torch.full((len(sizes), max(sizes)), -torch.inf, device=device)
    length = len(supernet.space.widths)
    for logits, rows in ((supernet.width_logits, slice(0, length)), (supernet.depth_logits, slice(length, None))):
        columns = 1 if logits is None else logits.size(1)
        table[rows, :columns] = 0.0 if logits is None else logits.log_softmax(1)
    return table


def _costs(supernet: Supernet, index: Tensor) -> Tensor:
    """MACs of several architectures [B, L + S] as `Architecture.macs` counts them."""
    length = len(supernet.space.widths)
    return supernet.cost.discrete(index[:, :length], index[:, length:]) + supernet.space.num_classes
