"""From probabilities to an architecture of wanted cost.

The argmax architecture follows the paper; its cost depends on where the search happened to stop. `within_target` gives
up as little probability for a cost in the wanted band as a greedy descent with corrections of up to two choices finds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tas_fast.architecture import Architecture
from tas_fast.methods.tas.supernet import Supernet


@torch.no_grad()
def within_target(supernet: Supernet, lower: float, upper: float) -> Architecture:
    """Return the argmax architecture, changed until its MACs lie in [lower, upper].

    Each move changes one width or one depth: the move into the band that loses the least log-probability, else the one
    that loses the least per MAC towards the band without leaping over it. In the band, one or two choices at a time are
    changed as long as that raises the probability. Where no move leads on, the architecture reached so far is
    returned; its cost is then outside the band.
    """
    space = supernet.space
    sizes = [*map(len, space.widths), *map(len, space.depths)]
    log_probs = _log_probs(supernet, sizes)
    moves = torch.tensor(
        [(row, candidate) for row, size in enumerate(sizes) for candidate in range(size)], device=log_probs.device
    )
    index = _descend(supernet, log_probs, moves, lower, upper)
    if lower <= _costs(supernet, index[None])[0] <= upper:
        while (better := _improve(supernet, log_probs, moves, index, lower, upper)) is not None:
            index = better
    widths, depths = index[: len(space.widths)].tolist(), index[len(space.widths) :].tolist()
    return space.derive(
        tuple(row[i] for row, i in zip(space.widths, widths, strict=True)),
        tuple(row[i] for row, i in zip(space.depths, depths, strict=True)),
    )


def _descend(supernet: Supernet, log_probs: Tensor, moves: Tensor, lower: float, upper: float) -> Tensor:
    """Single moves from the argmax towards the band."""
    index = log_probs.argmax(1)
    cost = _costs(supernet, index[None])[0]
    while not lower <= cost <= upper:
        trials = _moved(index, moves)
        costs, loss = _costs(supernet, trials), _losses(log_probs, moves, index)
        hits = (costs >= lower) & (costs <= upper)
        gain = (cost - costs) if cost > upper else (costs - cost)
        leaps = costs < lower if cost > upper else costs > upper
        score = torch.where(hits, loss, torch.where((gain > 0) & ~leaps & ~hits.any(), loss / gain, torch.inf))
        best = int(score.argmin())
        if score[best] == torch.inf:
            break
        index, cost = trials[best], costs[best]
    return index


def _improve(
    supernet: Supernet, log_probs: Tensor, moves: Tensor, index: Tensor, lower: float, upper: float
) -> Tensor | None:
    """The most probable architecture in the band that one or two moves reach, None when none beats `index`."""
    loss = _losses(log_probs, moves, index)
    best, least = None, -1e-6
    for first in moves[loss < 0]:  # one of the moves must raise the probability
        start = _moved(index, first[None])[0]
        trials = _moved(start, moves)
        total = log_probs[torch.arange(len(index)), index].sum() - log_probs.gather(1, trials.T).sum(0)
        costs = _costs(supernet, trials)
        total = torch.where((costs >= lower) & (costs <= upper), total, torch.inf)
        place = int(total.argmin())
        if total[place] < least:
            best, least = trials[place], float(total[place])
    return best


def _moved(index: Tensor, moves: Tensor) -> Tensor:
    """[moves, L + S]: `index` after each of the moves alone."""
    trials = index.repeat(len(moves), 1)
    trials[torch.arange(len(moves)), moves[:, 0]] = moves[:, 1]
    return trials


def _losses(log_probs: Tensor, moves: Tensor, index: Tensor) -> Tensor:
    """Log-probability that each move gives up."""
    return log_probs[torch.arange(len(index)), index][moves[:, 0]] - log_probs[moves[:, 0], moves[:, 1]]


def _log_probs(supernet: Supernet, sizes: list[int]) -> Tensor:
    """[L + S, largest number of candidates], -inf where a row has fewer."""
    device = supernet.cost.widths.device
    table = torch.full((len(sizes), max(sizes)), -torch.inf, dtype=torch.float64, device=device)
    length = len(supernet.space.widths)
    for logits, rows in ((supernet.width_logits, slice(0, length)), (supernet.depth_logits, slice(length, None))):
        columns = 1 if logits is None else logits.size(1)
        table[rows, :columns] = 0.0 if logits is None else logits.double().log_softmax(1)
    return table


def _costs(supernet: Supernet, index: Tensor) -> Tensor:
    """MACs of several architectures [B, L + S] as `Architecture.macs` counts them."""
    length = len(supernet.space.widths)
    return supernet.cost.discrete(index[:, :length], index[:, length:]) + supernet.space.num_classes
